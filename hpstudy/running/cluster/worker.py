"""The driver's end of a worker on a node.

Each worker has an agent on its node, which is a Ray actor. One call for reports is under way at a time for each worker;
its answer wakes the driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.files import make_durable
from hpstudy.running.cluster.agent import Node
from hpstudy.running.cluster.joining import last_line, node_of, ray_module
from hpstudy.running.executors import POLL_SECONDS, Ending
from hpstudy.running.messages import Finished, Order, Refused, Report, Save, Saved, Setup, Train

AGAIN_SECONDS = 0.5  # before a call that did not get through is repeated
KILL_SECONDS = 10.0  # for an agent to report the end of its worker that was killed; then the agent is ended too
MOST_READ = 10_000  # reports that wait for the driver, above which no more are asked for; then the trainer waits
PART_BYTES = 16 * 2**20  # of a file that is carried between driver and node

Event = tuple["RayWorker", str, Any]
"""(worker, what was called, its answer or its exception)."""


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
        self.failed_on: tuple[str, str] | None = None  # id and name of the node on which the agent could not start
        self.ending: Ending | None = None
        self.inbox: deque[Report] = deque()
        self.kill_by: float | None = None  # when the agent is ended too
        self._taken = 0  # reports received
        self._pauses = False  # whether so many of them wait that no more are asked for
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
        return self.node.name if self.node else self.failed_on[1] if self.failed_on else ""

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
        report = self.inbox.popleft() if self.inbox else None
        if self._pauses and self.ending is None and len(self.inbox) < MOST_READ // 2:
            self._pauses = False
            self._call("reports")
        return report

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
                self._pauses = len(self.inbox) >= MOST_READ
                if self.ending is None and not self._pauses:
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
        from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

        if isinstance(error, UserError | MachineError):
            problems = error.problems if isinstance(error, UserError) else (str(error),)
            self.inbox.append(Refused(problems=problems, by_user=isinstance(error, UserError)))
        elif isinstance(error, ActorUnavailableError):
            self._again.append((time.monotonic() + AGAIN_SECONDS, what))
        elif isinstance(error, OutOfMemoryError):
            self._end(f"Ray ended the worker on {self.place or 'a node'}", out_of_memory=True)
        elif isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
            self.failed_on = self.failed_on or node_of(self.actor)
            install = "; install the same hpstudy and Python there" if "ModuleNotFoundError" in str(error) else ""
            self._end(f"the agent on {self.place or 'a node'} failed", f"{last_line(error)}{install}")
        else:
            self._end(f"the worker on {self.place or 'a node'} is lost with its node or its agent", lost=True)

    def _end(self, cause: str, last: str = "", *, lost: bool = False, out_of_memory: bool = False) -> None:
        self.ending = Ending(cause=cause, last_line=last or cause, lost=lost, out_of_memory=out_of_memory)
        ray_module().kill(self.actor)

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
        ray = ray_module()
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
        with contextlib.suppress(OSError, ray_module().exceptions.RayError):
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
        except (OSError, ray_module().exceptions.RayError) as error:
            return replace(report, problem=last_line(error))
        return replace(report, seconds=report.seconds + time.monotonic() - start)
