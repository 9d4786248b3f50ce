"""Workers on the nodes of a Ray cluster. The only module that imports ray.

Each worker has an agent on its node, which is a Ray actor. One call for reports is under way at a time for each worker;
its answer wakes the driver. Ray places the agents; hpstudy only says what each needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hpstudy.data.carried import content_name
from hpstudy.data.catalog import Source, locate
from hpstudy.errors import MachineError, UserError
from hpstudy.files import CACHE_REMEDY, make_durable, own_file
from hpstudy.running.agent import Agent, Node
from hpstudy.running.executors import POLL_SECONDS, AwakeClock, Ending, EngineLost, Worker
from hpstudy.running.interface import STOP_SIGNALS
from hpstudy.running.messages import Finished, Order, Refused, Report, Save, Saved, Setup, Train
from hpstudy.running.survey import Place
from hpstudy.spec import TrainerSpec
from hpstudy.tracking.store import RAY_LOG

HEAD = "node:__internal_head__"  # a resource that the head alone has
NODE_ID = "ray.io/node-id"  # a label that Ray gives each node
INSTALL = 'pip install "hpstudy[cluster]"'
AGAIN_SECONDS = 0.5  # before a call that did not get through is repeated
KILL_SECONDS = 10.0  # for an agent to report the end of its worker that was killed; then the agent is ended too
STOP_SECONDS = 2.0  # for workers to end by themselves
WAITING_SECONDS = 60.0  # between two lines that say which workers wait for a place
FIRST_WAITING_SECONDS = 5.0  # before the first of them
JOIN_SECONDS = 5.0  # for a cluster's address to answer; Ray itself tries for minutes
NODES_SECONDS = 1.0  # between two questions for the cluster's nodes
HEAD_SECONDS = 20.0  # without an answer, after which the head counts as lost; Ray ends the driver after 60
PART_BYTES = 16 * 2**20  # of a file that is carried between driver and node

T = TypeVar("T")
Event = tuple["RayWorker", str, Any]
"""(worker, what was called, its answer or its exception)."""


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            f"--cluster: needs Ray, which is not installed here; `{INSTALL}`, or leave the flag out to train on this "
            "machine"
        ) from error
    return ray


class _AgentOnNode(Agent):
    """An agent that knows the engine's name of its node."""

    def meet(self, folder: Path, token: str, node_id: str = "") -> Node:
        return super().meet(folder, token, node_id or _ray().get_runtime_context().get_node_id())


class RayWorker:
    """The driver's end of a worker on a node. All but `_call`'s callback runs in the driver's thread."""

    def __init__(
        self,
        actor: Any,
        meet: tuple[Path, str],
        prepare: Callable[[RayWorker], Setup],
        events: SimpleQueue[Event],
        news: dict[RayWorker, None],
    ) -> None:
        """Asks the agent where it is. It answers once it has a place.

        `prepare` then gives the order to start, once its node has all that it needs.
        """
        self.actor, self._meet, self._prepare, self._events, self._news = actor, meet, prepare, events, news
        self.node: Node | None = None  # once it has a place
        self.ending: Ending | None = None
        self.inbox: deque[Report] = deque()
        self.kill_by: float | None = None  # when the agent is ended too
        self._taken = 0  # reports received
        self._orders: dict[int, Order] = {}  # those that the agent may not have
        self._next_order = 0
        self._saving_to: Path | None = None  # where the driver wants the checkpoint that its node is to carry back
        self._carrying: Path | None = None  # the same while it is carried
        self._prepared = False
        self._again: list[tuple[float, str]] = []  # calls to repeat, and when
        self._call("meet")

    @property
    def place(self) -> str:
        """See `Worker`."""
        return self.node.name if self.node else ""

    @property
    def waits(self) -> bool:
        """See `Worker`."""
        return not self._prepared and self.ending is None

    def send(self, order: Order) -> None:
        """See `Worker`. A checkpoint is carried if the node does not see the driver's folder."""
        assert self.node is not None
        number, self._next_order = self._next_order, self._next_order + 1
        if not self.node.sees_folder:
            if isinstance(order, Save):
                self._saving_to, order = order.path, Save(path=self.node.folder / "checkpoint.pt.part")
            elif isinstance(order, Train) and order.checkpoint is not None:
                there = replace(order, checkpoint=self.node.folder / "checkpoint.pt")
                self._orders[number] = there
                self._in_background(f"uploaded {number}", lambda: self._bring(order.checkpoint, there.checkpoint))
                return
        self._orders[number] = order
        self._call(f"obey {number}")

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """See `Worker`."""
        while not self.inbox and self.ending is None:
            meanwhile()
            with contextlib.suppress(Empty):
                worker, what, answer = self._events.get(timeout=POLL_SECONDS)
                worker.take(what, answer)
            self.tend()
        return self.inbox.popleft() if self.inbox else None

    def kill(self) -> None:
        """See `Worker`."""
        self.kill_by = time.monotonic() + KILL_SECONDS
        self._call("kill")

    def last_words(self) -> Ending:
        """See `Worker`."""
        assert self.ending is not None
        return self.ending

    def tend(self) -> None:
        """Repeats calls that did not get through, and gives up an agent that does not end its worker."""
        now = time.monotonic()
        due = [what for when, what in self._again if when <= now]
        self._again = [(when, what) for when, what in self._again if when > now]
        for what in due:
            self._call(what)
        if self.kill_by is not None and now > self.kill_by and self.ending is None:
            self._end(f"the worker on {self.place} gives no answer", lost=True)

    def take(self, what: str, answer: Any) -> None:
        """Takes the answer of a call."""
        if self.ending is not None:
            return
        self._news[self] = None
        if isinstance(answer, Exception):
            self._on_error(what, answer)
            return
        match what.partition(" ")[0]:
            case "meet":
                self.node = answer
                self._in_background("prepared", lambda: self._prepare(self))
                self._call("reports")
            case "prepared":
                self._prepared = True
                self.send(answer)
            case "obey":
                self._orders.pop(int(what.split()[1]), None)
            case "uploaded":
                self._call(f"obey {what.split()[1]}")
            case "carried":
                here, report = answer
                if self._carrying == here:
                    self._carrying = None
                    self.inbox.append(report)
                else:
                    here.unlink(missing_ok=True)
            case "reports":
                first, reports = answer
                for report in reports[self._taken - first :]:
                    self._taken += 1
                    self._take_report(report)
                if self.ending is None:
                    self._call("reports")

    def _take_report(self, report: Report | Ending) -> None:
        if isinstance(report, Ending):
            self.ending = report
            return
        if isinstance(report, Saved) and report.problem:
            report = replace(report, problem=f"on {self.place}: {report.problem}")
        elif isinstance(report, Saved) and self._saving_to is not None:
            there, here = self._path("checkpoint.pt.part"), self._saving_to
            self._carrying = here
            self._in_background("carried", lambda: (here, self._fetch(report, there, here)))
            return
        elif isinstance(report, Finished):
            self._carrying = None  # it needs no checkpoint any more
        self.inbox.append(report)

    def _on_error(self, what: str, error: Exception) -> None:
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        if isinstance(error, UserError | MachineError):
            problems = error.problems if isinstance(error, UserError) else (str(error),)
            self.inbox.append(Refused(problems=problems, by_user=isinstance(error, UserError)))
        elif isinstance(error, ActorUnavailableError):
            self._again.append((time.monotonic() + AGAIN_SECONDS, what))
        elif isinstance(error, RayActorError) and self.node is not None:
            self._end(f"the worker on {self.place} is lost with its node or its agent", lost=True)
        elif isinstance(error, RayTaskError | RayActorError):
            self._end(f"the agent failed: {_last_line(error)}")
        else:
            self._end(f"the worker on {self.place or 'a node'} is lost ({_last_line(error)})", lost=True)

    def _end(self, cause: str, *, lost: bool = False) -> None:
        self.ending = Ending(cause=cause, last_line=cause, lost=lost)
        _ray().kill(self.actor)

    def _call(self, what: str) -> None:
        """Calls a method of the agent. The answer becomes an event."""
        name, _, number = what.partition(" ")
        arguments: dict[str, Any] = {
            "meet": self._meet,
            "reports": (self._taken,),
            "obey": (int(number or 0), self._orders.get(int(number or 0))),
            "kill": (),
        }
        group = name if name in ("reports", "kill") else "orders"
        method = getattr(self.actor, name).options(concurrency_group=group)
        self._answer(what, method.remote(*arguments[name]).future())

    def _answer(self, what: str, future: Any) -> None:
        future.add_done_callback(lambda done: self._events.put((self, what, done.exception() or done.result())))

    def _path(self, name: str) -> Path:
        assert self.node is not None
        return self.node.folder / name

    def _in_background(self, what: str, work: Callable[[], Any]) -> None:
        """Does what takes long in a thread. Its answer or its exception becomes an event."""

        def run() -> None:
            try:
                answer = work()
            except Exception as error:
                answer = error
            self._events.put((self, what, answer))

        threading.Thread(target=run, name=f"carry for {self.place}", daemon=True).start()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the agent returns. A call that does not get through is repeated. For threads alone."""
        ray = _ray()
        while True:
            try:
                call = getattr(self.actor, method).options(concurrency_group="orders")
                return ray.get(call.remote(*arguments))
            except ray.exceptions.ActorUnavailableError:
                time.sleep(AGAIN_SECONDS)

    def upload(self, here: Path, there: Path) -> None:
        """Carries a file to the node."""
        with here.open("rb") as file:
            while part := file.read(PART_BYTES):
                self.ask("put", there, file.tell() - len(part), part)

    def _bring(self, here: Path | None, there: Path | None) -> None:
        """Carries a checkpoint to the node. If that fails, the worker finds none, and says that it begins anew."""
        assert here is not None
        assert there is not None
        with contextlib.suppress(OSError, _ray().exceptions.RayError):
            self.upload(here, there)

    def _fetch(self, report: Saved, there: Path, here: Path) -> Saved:
        """Carries a checkpoint from the node."""
        start = time.monotonic()
        try:
            here.unlink(missing_ok=True)
            with here.open("xb") as file:  # never through a link
                while self._carrying == here and (part := self.ask("get", there, file.tell(), PART_BYTES)):
                    file.write(part)
                make_durable(file)
        except (OSError, _ray().exceptions.RayError) as error:
            return replace(report, problem=_last_line(error))
        return replace(report, seconds=report.seconds + time.monotonic() - start)


class Corpora:
    """Where each node has the corpus of a study. One worker of a node finds it or has it carried, for all of them.

    Its methods run in the workers' threads.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._here, self._locating = dict[Path, Path](), threading.Lock()
        self._wanted: Source | None = None
        self._found: dict[str, Source] = {}  # by node id
        self._finding: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def prepare(self, setup: Setup, worker: RayWorker) -> Setup:
        """The setup of a worker, once its node has the corpus.

        Raises UserError if the corpus is not here either, MachineError if the node has no room for it.
        """
        assert worker.node is not None
        node = worker.node.node_id
        with self._finding[node]:
            if node not in self._found:
                self._found[node] = self._find(setup, worker)
        return replace(setup, source=self._found[node])

    def _find(self, setup: Setup, worker: RayWorker) -> Source:
        wanted = self._named(setup)
        source: Source
        source, missing = worker.ask("find_corpus", setup, wanted)
        if missing:
            files = {there: self._here[Path(there.name)] for there in missing}
            size, start = sum(file.stat().st_size for file in files.values()) / 1e6, time.monotonic()
            self._say(f"{worker.place}: does not have the corpus {setup.spec.corpus}; {size:,.1f} MB are carried there")
            for there, here in files.items():
                self._carry(worker, here, there)
            self._say(f"{worker.place}: the corpus was carried in {time.monotonic() - start:.1f} s")
        return source

    def _named(self, setup: Setup) -> Source:
        """The corpus with the names that its files have on other machines."""
        with self._locating:
            if self._wanted is None:
                spec = setup.spec
                source = locate(spec.corpus, spec.tokenizer, setup.base, spec.val)
                names = {path: Path(content_name(path, raw=source.raw)) for path in source.files}
                self._here = {name: path for path, name in names.items()}
                self._wanted = source.renamed(names.__getitem__)
            return self._wanted

    def _carry(self, worker: RayWorker, here: Path, there: Path) -> None:
        part = there.with_name(f"{there.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            worker.upload(here, part)
            worker.ask("keep_corpus", part, there)
        except _ray().exceptions.RayTaskError as error:
            raise MachineError(
                f"the corpus cannot be carried to {there.parent} on {worker.place} ({_last_line(error)}); make room "
                f"there, or {CACHE_REMEDY} before Ray starts on that node"
            ) from error


class RayExecutor:
    """Workers on a running Ray cluster, which may grow and shrink."""

    grows = True

    def __init__(self, address: str, spec: TrainerSpec, device: str, folder: Path, say: Callable[[str], None]) -> None:
        """Joins the cluster at `address`, or for "auto" the one that this machine belongs to.

        `folder`: the study's. Raises UserError if there is no such cluster, or it lacks the device.
        """
        if device.startswith("cuda:"):
            raise UserError(f"--device {device}: on a cluster Ray chooses the GPU; use --device cuda")
        self._say, self._folder = say, folder
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._news: dict[RayWorker, None] = {}  # those that may have a report, or have ended
        self._tended = 0.0
        self._workers: list[RayWorker] = []
        self._avoided: set[str] = set()  # node ids
        self._say_waiting_at = time.monotonic() + FIRST_WAITING_SECONDS
        join(address, folder / RAY_LOG)
        self._nodes = _Nodes()
        self._device, self._needs = needs(spec, device, self._nodes.alive)
        self._token = f".seen-{uuid.uuid4().hex}"
        self._corpora = Corpora(say)

    def start(self, setup: Setup, number: int, node_id: str | None = None) -> RayWorker:
        """See `Executor`. With `node_id`, on that node alone."""
        ray = _ray()
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / self._token).touch()
        options: dict[str, Any] = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
            "max_restarts": 0,
            "concurrency_groups": {"orders": 1, "reports": 1, "kill": 1},
        }
        if node_id is not None:
            options["label_selector"] = {NODE_ID: node_id}
        elif self._avoided:
            options["label_selector"] = {NODE_ID: f"!in({','.join(sorted(self._avoided))})"}
        actor = ray.remote(**options)(_AgentOnNode).remote(number)
        prepare = partial(self._corpora.prepare, replace(setup, device=self._device))
        worker = RayWorker(actor, (self._folder.absolute(), self._token), prepare, self._events, self._news)
        self._workers.append(worker)
        return worker

    def heard(self, seconds: float) -> list[Worker]:
        """See `Executor`."""
        wait = not any(worker.inbox or worker.ending for worker in self._news)
        with contextlib.suppress(Empty):
            worker, what, answer = self._events.get(wait, seconds)
            worker.take(what, answer)
            while True:
                worker, what, answer = self._events.get_nowait()
                worker.take(what, answer)
        if time.monotonic() - self._tended > POLL_SECONDS:
            self._tend()
            self._nodes.refuse_if_silent()
        for worker in [worker for worker in self._news if not worker.inbox and worker.ending is None]:
            del self._news[worker]
        return list(self._news)

    def _tend(self) -> None:
        self._tended = time.monotonic()
        for worker in self._workers:
            worker.tend()
            if worker.ending is not None:
                self._news[worker] = None
        self._say_who_waits()

    def places(self, setup: Setup, here: int) -> int:
        """See `Executor`."""
        return sum(
            int(min(node["Resources"].get(name, 0.0) // need for name, need in self._needs.items()))
            for node in self._nodes.alive
            if node["NodeID"] not in self._avoided
        )

    def avoid(self, worker: Worker) -> None:
        """See `Executor`."""
        assert isinstance(worker, RayWorker)
        if worker.node is not None:
            self._avoided.add(worker.node.node_id)

    def stop(self, workers: Sequence[Worker]) -> None:
        """See `Executor`."""
        ray = _ray()
        ours = [worker for worker in self._workers if worker in set(workers)]
        alive = [
            worker.actor.end.options(concurrency_group="kill").remote()
            for worker in ours
            if worker.node and not worker.ending
        ]
        if alive:
            ray.wait(alive, num_returns=len(alive), timeout=STOP_SECONDS)
        for worker in ours:
            worker.ending = worker.ending or Ending(cause="the worker was ended", last_line="")
            ray.kill(worker.actor)
            self._workers.remove(worker)
            self._news.pop(worker, None)
        if not self._workers:
            (self._folder / self._token).unlink(missing_ok=True)

    def all_places(self) -> list[Place]:
        """The nodes that are alive, the head first, then by name. Those that share a name have their address too."""
        alive = sorted(self._nodes.alive, key=lambda node: (HEAD not in node["Resources"], _name(node)))
        named = Counter(node["NodeManagerHostname"] for node in alive)
        return [
            Place(
                node_id=node["NodeID"],
                name=_name(node) if named[node["NodeManagerHostname"]] > 1 else node["NodeManagerHostname"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                lacks=self._lacks(node["Resources"]),
            )
            for node in alive
        ]

    def _lacks(self, resources: Mapping[str, float]) -> str:
        enough = all(resources.get(name, 0.0) >= need for name, need in self._needs.items())
        return "" if enough else f"{_listed(self._needs)}, but has {self._offer(resources)}"

    def on_each(self, work: partial[T], seconds: float) -> dict[str, T | str]:
        """{node id: what `work` returned there, or why it did not}. Needs no free place, and waits that long."""
        ray = _ray()
        asked = {
            node["NodeID"]: ray.remote(num_cpus=0, max_retries=0, label_selector={NODE_ID: node["NodeID"]})(
                _call
            ).remote(work)
            for node in self._nodes.alive
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
        found: dict[str, T | str] = {}
        for node_id, reference in asked.items():
            try:
                found[node_id] = ray.get(reference) if reference in ready else f"no answer within {seconds:.0f} s"
            except ray.exceptions.RayError as error:
                found[node_id] = _last_line(error)
        return found

    def _say_who_waits(self) -> None:
        waiting = sum(worker.node is None for worker in self._workers)
        if waiting and time.monotonic() > self._say_waiting_at:
            self._say_waiting_at = time.monotonic() + WAITING_SECONDS
            self._say(f"{f'{waiting} workers wait' if waiting > 1 else '1 worker waits'} for a place: {self.room()}")

    def _offer(self, resources: Mapping[str, float]) -> str:
        return " and ".join(f"{resources.get(name, 0.0):g} {name}" for name in self._needs)

    def room(self) -> str:
        """See `Executor`."""
        usable = [node for node in self._nodes.alive if node["NodeID"] not in self._avoided]
        has = "; ".join(f"{node['NodeManagerHostname']} {self._offer(node['Resources'])}" for node in usable)
        return f"each needs {_listed(self._needs)}; the cluster has {has or 'no node that this study may use'}"


class _Nodes:
    """The nodes of the cluster. A thread asks for them, as the answer never comes once the head is lost."""

    def __init__(self) -> None:
        self.alive = self._seen = nodes()
        self._clock, self._seen_at, self._given_up = AwakeClock(), 0.0, False
        threading.Thread(target=self._ask, name="nodes", daemon=True).start()

    def _ask(self) -> None:
        while True:
            time.sleep(NODES_SECONDS)
            with contextlib.suppress(_ray().exceptions.RayError):  # is no answer
                self.alive = nodes()

    def refuse_if_silent(self) -> None:
        """Raises EngineLost, once, if there was no answer for HEAD_SECONDS."""
        now = self._clock.seconds()
        if self.alive is not self._seen:
            self._seen, self._seen_at = self.alive, now
        elif now - self._seen_at > HEAD_SECONDS and not self._given_up:
            self._given_up = True
            raise EngineLost(
                f"the cluster's head has given no answer for {HEAD_SECONDS:.0f} s, so the study stops here; nothing "
                "that is recorded is lost. Start a cluster again, and run the same command with its address: it resumes"
            )


def join(address: str, log: Path) -> None:
    """Connects to a running cluster and keeps this process's own handling of signals. Ray's lines go to `log`.

    Raises UserError if there is no such cluster.
    """
    ray = _ray()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        if not ray.is_initialized():
            _refuse_silence(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        _keep_off_stdout(log)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--cluster {address}: the cluster requires its token, which is missing here or another; set RAY_AUTH_MODE="
            "token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as on its nodes"
        ) from error
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--cluster {address}: no Ray cluster answers ({_last_line(error)}); start one with `ray start --head`, or "
            "leave the flag out to train on this machine"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _refuse_silence(address: str) -> None:
    """Raises OSError or RayError if no head answers at HOST:PORT, for which Ray would try for minutes."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(create_token_if_missing=False)  # else Ray aborts this process without a token
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    socket.create_connection((host.strip("[]"), int(port)), JOIN_SECONDS).close()
    answer: SimpleQueue[Exception | None] = SimpleQueue()
    threading.Thread(target=lambda: answer.put(_ask_head(address)), name="join", daemon=True).start()
    try:
        error = answer.get(timeout=JOIN_SECONDS)
    except Empty:
        raise TimeoutError(f"who listens there gives no answer as a head of Ray in {JOIN_SECONDS:.0f} s") from None
    if error is not None:
        raise error


def _ask_head(address: str) -> Exception | None:
    try:
        _ray()._raylet.GcsClient(address=address)
    except Exception as error:
        return error
    return None


def _keep_off_stdout(log: Path) -> None:
    """Sends what Ray prints about its nodes to a file.

    It prints to stdout, which holds hpstudy's result, whatever log_to_driver and logging_level say.
    """

    def keep(data: Mapping[str, Any], *_: object, **__: object) -> None:
        with contextlib.suppress(OSError), open(log, "a", opener=own_file) as file:
            file.writelines(f"{line}\n" for line in data["lines"])

    _ray()._private.worker.print_to_stdstream = keep


def tokens_required() -> bool:
    """Whether the cluster that this process has joined is used with a token, which a driver needs if the nodes do."""
    _ray()
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def nodes() -> list[Mapping[str, Any]]:
    """The nodes of the cluster that are alive, as Ray describes them."""
    return [node for node in _ray().nodes() if node["Alive"]]


def needs(spec: TrainerSpec, device: str, found: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, float]]:
    """(the device of every worker, what each needs of a node). `device` is that of the command line.

    Raises UserError if the cluster has no such device.
    """
    num_gpus = sum(node["Resources"].get("GPU", 0) for node in found)
    if device == "cuda" and not num_gpus:
        raise UserError("--device cuda: the cluster has no GPU; use --device cpu, or add a node that has one")
    if device != "cpu" and num_gpus:
        return "cuda", {"GPU": float(spec.gpus), "CPU": float(spec.gpus)}
    return "cpu", {"CPU": float(spec.threads * spec.processes)}


def _call(work: partial[T]) -> T:
    return work()


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _listed(needs: Mapping[str, float]) -> str:
    return " and ".join(f"{value:g} {name}" for name, value in needs.items())


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
