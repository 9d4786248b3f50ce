"""What the nodes of a cluster have, and whether each can train: one tiny worker on every node, side by side."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from hpstudy.files import cache_dir
from hpstudy.running.environment import differences, kind_of
from hpstudy.running.executors import POLL_SECONDS, Executor, Worker
from hpstudy.running.messages import Ready, Refused, Setup

LOOK_SECONDS = 60.0  # for every node to say what it has
PLACE_SECONDS = 20.0  # for a free place on a node
PROBE_SECONDS = 120.0  # for the workers to be ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node as the cluster's engine knows it."""

    node_id: str
    name: str
    cpus: float
    gpus: float
    lacks: str  # "1 GPU, but has 0": why it takes no worker; empty if it takes one


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a node has besides a trainer."""

    python: str
    torch: str
    hpstudy: str
    niceness: int
    sees_folder: bool
    cache_free_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A node, with what was found there."""

    place: Place
    facts: Facts | None = None
    environment: Mapping[str, Any] | None = None  # of its worker, if it can train
    problem: str = ""  # why it cannot; empty if it can, takes no workers, or is busy
    busy: bool = False  # no place became free, so no worker was tried

    @property
    def kind(self) -> str:
        """The kind of machine with the code that it runs; empty if it cannot train."""
        found = self.environment
        return f"{kind_of(found)}, code {found['code_sha256'][:6]}" if found else ""


class Cluster(Executor, Protocol):
    """An executor that can also be asked about each node."""

    def all_places(self) -> Sequence[Place]:
        """The nodes that are alive."""

    def on_each(self, work: partial[Facts], seconds: float) -> Mapping[str, Facts | str]:
        """{node id: what `work` returned there, or why it did not}."""

    def start(self, setup: Setup, number: int, node_id: str | None = None) -> Worker:
        """Starts a worker, on that node if one is named."""


def look(folder: Path) -> Facts:
    """The facts of the node that calls this. It sees the driver's folders if it sees `folder`."""
    cache = cache_dir()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return Facts(
        python=platform.python_version(),
        torch=version("torch"),
        hpstudy=version("hpstudy"),
        niceness=os.getpriority(0, 0),
        sees_folder=folder.is_dir(),
        cache_free_gib=shutil.disk_usage(there).free / 2**30,
    )


def survey(cluster: Cluster, setup: Setup, folder: Path) -> list[Surveyed]:
    """What every node has, and how a worker starts there. `folder` exists on this machine."""
    places = cluster.all_places()
    facts = cluster.on_each(partial(look, folder), LOOK_SECONDS)
    able = [place for place in places if not place.lacks and isinstance(facts.get(place.node_id), Facts)]
    found = _probe(cluster, setup, [place.node_id for place in able])
    surveyed = []
    for place in places:
        known, probed = facts.get(place.node_id), found.get(place.node_id, "")
        silent = known if isinstance(known, str) else ""
        surveyed.append(
            Surveyed(
                place=place,
                facts=known if isinstance(known, Facts) else None,
                environment=probed if isinstance(probed, Mapping) else None,
                problem=(probed if isinstance(probed, str) else "") or ("" if place.lacks else silent),
                busy=probed is None,
            )
        )
    return surveyed


def _probe(cluster: Cluster, setup: Setup, node_ids: Sequence[str]) -> dict[str, Mapping[str, Any] | str | None]:
    """{node id: the environment of its worker, or why it has none; None if no place became free}."""
    found: dict[str, Mapping[str, Any] | str | None] = {}
    workers = {cluster.start(setup, number, node_id): node_id for number, node_id in enumerate(node_ids)}
    began = time.monotonic()
    try:
        while len(found) < len(workers) and (waited := time.monotonic() - began) < PROBE_SECONDS:
            for worker in cluster.heard(POLL_SECONDS):
                match worker.receive():
                    case Ready() as ready:
                        found[workers[worker]] = ready.environment
                    case Refused() as refused:
                        found[workers[worker]] = "; ".join(refused.problems)
                    case None:
                        found.setdefault(workers[worker], worker.last_words().cause)
                        cluster.stop([worker])
            if waited > PLACE_SECONDS:
                for worker, node_id in workers.items():
                    if worker.waits and not worker.place:
                        found.setdefault(node_id, None)
    finally:
        cluster.stop(list(workers))
    late = f"its worker is not ready after {PROBE_SECONDS:.0f} s"
    return {node_id: found.get(node_id, late) for node_id in node_ids}


def kinds(nodes: Sequence[Surveyed]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(kind, names of its nodes, what differs from the first kind) of the nodes that can train."""
    able = [(node, node.environment) for node in nodes if node.environment is not None]
    for kind in dict.fromkeys(node.kind for node, _ in able):
        names = [node.place.name for node, _ in able if node.kind == kind]
        first, this = able[0][1], next(environment for node, environment in able if node.kind == kind)
        codes = [str(environment["code_sha256"])[:6] for environment in (first, this)]
        other = [f"hpstudy was code {codes[0]}, is {codes[1]}"] if codes[0] != codes[1] else []
        yield kind, names, differences(first, this) + other
