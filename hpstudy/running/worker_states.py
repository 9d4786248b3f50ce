"""What each worker of a running study does, in a file of the run folder that `hpstudy status` reads."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import getpid

from pydantic import TypeAdapter, ValidationError

from hpstudy.tracking.lease import Lease
from hpstudy.tracking.store import RunStore

WORKERS = "workers.json"  # in the run folder, while a driver runs the study
WRITE_SECONDS = 2.0  # at least, between two versions of the file


class Doing(enum.StrEnum):
    """What a worker does."""

    WAITS = "waits for a place"
    STARTS = "starts"
    TRAINS = "trains"
    IDLE = "is idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """One worker."""

    number: int
    node: str  # the machine that it runs on; empty for the driver's, and until it has a place
    kind: str  # of that machine; empty until the worker is ready
    state: Doing
    run: str | None  # that it trains
    since: str = ""  # when that began: ISO 8601, UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """All workers of a session."""

    pid: int  # of the driver, as a killed one leaves its file
    workers: tuple[WorkerState, ...]  # by number
    room: str  # what those that wait for a place need, and what there is; empty if none waits


_WORKERS = TypeAdapter(Workers)


class WorkersFile:
    """Keeps the file as it should be, with little effort."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._written_at = -WRITE_SECONDS
        self._written: Workers | None = None
        self._since: dict[int, WorkerState] = {}

    def update(self, states: Callable[[], Sequence[WorkerState]], room: Callable[[], str]) -> None:
        """Writes the file if something has changed, WRITE_SECONDS after the last time at the earliest."""
        now = time.monotonic()
        if now - self._written_at < WRITE_SECONDS:
            return
        self._written_at = now
        dated = tuple(self._dated(state) for state in sorted(states(), key=lambda state: state.number))
        self._since = {state.number: state for state in dated}
        waits = any(state.state is Doing.WAITS for state in dated)
        found = Workers(pid=getpid(), workers=dated, room=room() if waits else "")
        if found != self._written:
            self._store.write_json(WORKERS, asdict(found))
            self._written = found

    def _dated(self, state: WorkerState) -> WorkerState:
        before = self._since.get(state.number)
        if before is not None and replace(before, since="") == state:
            return before
        return replace(state, since=_now())

    def remove(self) -> None:
        """Removes the file, at the end of a session."""
        if self._written is not None:
            (self._store.root / WORKERS).unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_workers(store: RunStore, holder: Lease | None) -> Workers | None:
    """The workers of the driver that runs the study, or None if none does or has said."""
    found = store.read_json(WORKERS) if holder is not None else None
    try:
        workers = _WORKERS.validate_python(found) if found is not None else None
    except ValidationError:  # of another version
        return None
    return workers if workers is not None and holder is not None and workers.pid == holder.pid else None
