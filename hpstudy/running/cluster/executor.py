"""Starts workers on the nodes of a cluster. Ray places the agents; hpstudy only says what each needs."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hpstudy.errors import UserError
from hpstudy.running.cluster.agent import Agent, Node
from hpstudy.running.cluster.corpora import Corpora
from hpstudy.running.cluster.joining import Nodes, join, last_line, ray_module
from hpstudy.running.cluster.worker import Event, RayWorker
from hpstudy.running.executors import POLL_SECONDS, Ending, Worker
from hpstudy.running.messages import Setup
from hpstudy.running.survey import Place
from hpstudy.spec import TrainerSpec
from hpstudy.tracking.store import RAY_LOG

HEAD = "node:__internal_head__"  # a resource that the head alone has
NODE_ID = "ray.io/node-id"  # a label that Ray gives each node
STOP_SECONDS = 2.0  # for workers to end by themselves
WAITING_SECONDS = 60.0  # between two lines that say which workers wait for a place
FIRST_WAITING_SECONDS = 5.0  # before the first of them
FIRST_NODE_SECONDS = 60.0  # for the first node with CPUs or GPUs to join

T = TypeVar("T")


class _AgentOnNode(Agent):
    """An agent that knows the engine's name of its node."""

    def meet(self, folder: Path, token: str, node_id: str = "") -> Node:
        return super().meet(folder, token, node_id or ray_module().get_runtime_context().get_node_id())


class RayExecutor:
    """Workers on a running Ray cluster, which may grow and shrink."""

    grows = True

    def __init__(self, address: str, spec: TrainerSpec, device: str, folder: Path, say: Callable[[str], None]) -> None:
        """Joins the cluster at `address`, or for "auto" the one that this machine belongs to.

        `folder`: the study's. Raises UserError if there is no such cluster, or it lacks the device.
        """
        if device.startswith("cuda:"):
            raise UserError(f"--device {device}: on a cluster Ray chooses the GPU; use --device cuda")
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: must be auto, cpu or cuda on a cluster; use --device auto")
        self._say, self._folder = say, folder
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._news: dict[RayWorker, None] = {}  # those that may have a report, or have ended
        self._tended = 0.0
        self._workers: list[RayWorker] = []
        self._avoided: set[str] = set()  # node ids
        self._say_waiting_at = time.monotonic() + FIRST_WAITING_SECONDS
        join(address, folder / RAY_LOG)
        for remain in folder.glob(".seen-*"):  # of a driver that was killed
            remain.unlink(missing_ok=True)
        self._nodes = Nodes()
        self._await_first_node()
        self._device, self._needs = needs(spec, device, self._nodes.alive)
        self._token = f".seen-{uuid.uuid4().hex}"
        self._corpora = Corpora(say)

    def _await_first_node(self) -> None:
        """Waits until a node trains at all, FIRST_NODE_SECONDS at most: the device of all workers is chosen then."""
        until, said = time.monotonic() + FIRST_NODE_SECONDS, False
        while time.monotonic() < until and not any(
            node["Resources"].get(what, 0) for node in self._nodes.alive for what in ("GPU", "CPU")
        ):
            if not said:
                self._say(f"waiting up to {FIRST_NODE_SECONDS:.0f} s for a node that has CPUs or GPUs for workers")
            said = True
            time.sleep(POLL_SECONDS)

    def start(self, setup: Setup, number: int, node_id: str | None = None) -> RayWorker:
        """See `Executor`. With `node_id`, on that node alone."""
        ray = ray_module()
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
        self._say_waiting()

    def places(self, here: int) -> int:
        """See `Executor`."""
        return sum(
            int(min(node["Resources"].get(name, 0.0) // need for name, need in self._needs.items()))
            for node in self._nodes.alive
            if node["NodeID"] not in self._avoided
        )

    def avoid(self, worker: Worker) -> bool:
        """See `Executor`."""
        assert isinstance(worker, RayWorker)
        node_id = worker.node.node_id if worker.node else worker.failed_on[0] if worker.failed_on else None
        if node_id is not None:
            self._avoided.add(node_id)
        return node_id is not None

    def close(self) -> None:
        """See `Executor`."""
        self._nodes.close()

    def stop(self, workers: Sequence[Worker]) -> None:
        """See `Executor`."""
        ray = ray_module()
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
        ray = ray_module()
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
                found[node_id] = last_line(error)
        return found

    def _say_waiting(self) -> None:
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
        found = has or "no node that this study may use"
        return f"each needs {_listed(self._needs)}; the cluster has, free or not, {found}"


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
