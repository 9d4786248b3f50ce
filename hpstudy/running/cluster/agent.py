"""An agent: starts a worker process on a node of a cluster and passes orders and reports on.

The cluster's engine runs it in a process of its own. The worker is the process that a local driver would start, with
no thread of the engine's in it, so that its numbers and its speed are the local ones. Every order and report has a
number, so that a call that is repeated after a cut network loses and doubles nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

from hpstudy.data import carried
from hpstudy.data.catalog import Source
from hpstudy.files import cache_dir
from hpstudy.running.executors import Ending
from hpstudy.running.local import LocalExecutor, LocalWorker
from hpstudy.running.messages import Order, Recorded, Report, Setup

PATIENCE_SECONDS = 10.0  # that a call waits for the first report
LINGER_SECONDS = 0.2  # that it then waits for more, unless one is urgent; each call costs driver and node a millisecond
MOST_KEPT = 20_000  # reports that the driver has not taken, after which the worker waits
LOCK = "lock"  # the file that an agent holds as long as it lives
MOST_AT_ONCE = 2_000  # reports of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Where an agent runs."""

    name: str
    node_id: str  # the engine's
    sees_folder: bool  # the study's folder, as the driver does
    folder: Path  # for what the worker writes, if it does not see the study's
    niceness: int


class Agent:
    """One worker on this node. Its methods are called from the driver, `reports` and `kill` beside the others."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._folder = Path()
        self._lock: IO[bytes] | None = None  # on a folder of its own
        self._worker: LocalWorker | None = None
        self._next_order = 0
        self._early: dict[int, Order] = {}  # orders that came before their turn
        self._news = threading.Condition()
        self._kept: deque[Report | Ending] = deque()
        self._taken = 0  # reports that the driver has
        self._urgent = False  # whether one of the others does not wait for more

    def meet(self, folder: Path, token: str, node_id: str) -> Node:
        """Says where this is, and whether the study's `folder` is the driver's: it then holds a file named `token`."""
        sees = (folder / token).exists()
        if sees:
            self._folder = folder
        elif self._lock is None:  # else the answer of an earlier call was lost
            self._folder, self._lock = _own_folder()
        return Node(
            name=socket.gethostname(),
            node_id=node_id,
            sees_folder=sees,
            folder=self._folder,
            niceness=os.getpriority(0, 0),
        )

    def obey(self, number: int, order: Order) -> None:
        """Passes orders on in the order of their numbers, each once."""
        if number >= self._next_order:
            self._early[number] = order
        while (order_now := self._early.pop(self._next_order, None)) is not None:
            self._next_order += 1
            if isinstance(order_now, Setup):
                self._start(order_now)
            elif self._worker is not None:
                self._worker.send(order_now)

    def _start(self, setup: Setup) -> None:
        self._worker = LocalExecutor(self._folder).start(setup, self._number)
        threading.Thread(target=self._listen, args=[self._worker], name="listen", daemon=True).start()

    def _listen(self, worker: LocalWorker) -> None:
        report: Report | Ending | None = None
        while not isinstance(report, Ending):
            report = worker.receive() or _with_host(worker.last_words())
            with self._news:
                self._news.wait_for(lambda: len(self._kept) < MOST_KEPT)
                self._kept.append(report)
                self._urgent |= not isinstance(report, Recorded) or report.record.evaluated
                self._news.notify_all()

    def reports(self, taken: int) -> tuple[int, list[Report | Ending]]:
        """The reports from number `taken` on, and that number. The driver has all those before it.

        Waits PATIENCE_SECONDS for the first. Steps without an evaluation then wait LINGER_SECONDS for others.
        """
        with self._news:
            while self._taken < taken and self._kept:
                self._kept.popleft()
                self._taken += 1
            self._news.notify_all()
            self._news.wait_for(lambda: self._kept, PATIENCE_SECONDS)
            if self._kept:
                self._news.wait_for(lambda: self._urgent or len(self._kept) >= MOST_AT_ONCE, LINGER_SECONDS)
            self._urgent = False
            return self._taken, list(islice(self._kept, MOST_AT_ONCE))

    def kill(self) -> None:
        """Ends the worker at once. Its end is then reported."""
        if self._worker is not None:
            self._worker.kill()

    def end(self) -> None:
        """Ends the worker, gently first. A log that is not empty stays on this node."""
        if self._worker is not None:
            self._worker.last_words()
        if self._lock is not None:
            _clear(self._folder)
            self._lock.close()

    def find_corpus(self, setup: Setup, wanted: Source) -> tuple[Source, list[Path]]:
        """See `carried.find`."""
        return carried.find(setup.spec, setup.base, wanted)

    def keep_corpus(self, part: Path, path: Path) -> None:
        """See `carried.keep`."""
        carried.keep(part, path)

    def put(self, path: Path, offset: int, part: bytes) -> None:
        """Writes a part of a file of this node. The first one, at offset 0, begins the file anew.

        If there is no room, the file is removed.
        """
        _made(path.parent)
        try:
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(part)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def get(self, path: Path, offset: int, size: int) -> bytes:
        """Reads a part of a file of this node; empty after its end."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _with_host(ending: Ending) -> Ending:
    return replace(ending, cause=f"{ending.cause}, on {socket.gethostname()}")


def _own_folder() -> tuple[Path, IO[bytes]]:
    """A folder for this process alone, and its lock. Checkpoints that killed agents have left are removed."""
    folders = _made(cache_dir() / "nodes")
    with (folders / LOCK).open("wb") as one_at_a_time:
        with contextlib.suppress(OSError):  # some network file systems have no locks; then nothing is removed either
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for folder in folders.glob("hpstudy-*"):
            with contextlib.suppress(OSError), (folder / LOCK).open("rb+") as theirs:
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(folder)
        own = Path(tempfile.mkdtemp(prefix="hpstudy-", dir=folders))
        lock = (own / LOCK).open("wb")
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    return own, lock


def _clear(folder: Path) -> None:
    """Removes an agent's folder, but for its worker's log if that holds anything."""
    for path in folder.iterdir():
        if path.suffix != ".log" or not path.stat().st_size:
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
