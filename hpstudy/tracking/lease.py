"""Which driver may write a study: a file with its host, pid and heartbeat, for file systems whose locks do not work.

`flock` is missing on some network file systems, and on others it only holds within one host. A driver keeps the lease
by changing it every BEAT_SECONDS. No clocks are compared: another driver takes over a lease that it has seen unchanged
for LOST_SECONDS, or at once if the holder was a process of its own host that is gone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpstudy.errors import MachineError, UserError
from hpstudy.files import from_json, json_object, to_json, write_atomic

LEASE = ".lease"
BEAT_SECONDS = 2.0
LOST_SECONDS = 15.0  # without a beat, until another host may take over; several beats, as network files lag


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who writes a study."""

    host: str
    pid: int
    token: str  # of this driver alone, as pids return
    beat: int

    def __str__(self) -> str:
        """The holder, for messages."""
        return f"pid {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether the holder was a process of this host that has ended."""
        return self.host == platform.node() and not _alive(self.pid)


def held(folder: Path, holder: str) -> UserError:
    """The refusal of a second driver."""
    return UserError(f"{folder}: another hpstudy ({holder}) runs this study; wait for it, or end it")


@contextmanager
def leased(folder: Path, on_lost: Callable[[], None]) -> Iterator[Lease]:
    """Holds the lease of a study. Calls `on_lost`, from another thread, if another driver has taken it over.

    Raises UserError if another driver holds it.
    """
    path = folder / LEASE
    mine = Lease(host=platform.node(), pid=os.getpid(), token=uuid.uuid4().hex, beat=0)
    if (found := _read(path)) is not None and not found.is_dead and _beats(path, found):
        raise held(folder, str(found))
    _write(path, mine)
    time.sleep(0.01)
    if (now := _read(path)) is None or now.token != mine.token:  # two took it over at once; the last one has it
        raise held(folder, str(now))
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, mine, done, on_lost), name="lease", daemon=True)
    keeper.start()
    try:
        yield mine
    finally:
        done.set()
        keeper.join()
        if (last := _read(path)) is not None and last.token == mine.token:
            with contextlib.suppress(OSError):
                path.unlink()


def _keep(path: Path, mine: Lease, done: threading.Event, on_lost: Callable[[], None]) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        found = _read(path)
        if found is not None and found.token != mine.token:
            on_lost()
            return
        beat += 1
        with contextlib.suppress(MachineError):  # a full disk ends no study here
            _write(path, replace(mine, beat=beat))


def _beats(path: Path, before: Lease) -> bool:
    """Whether the holder shows itself within LOST_SECONDS."""
    deadline = time.monotonic() + LOST_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
        now = _read(path)
        if now is None:
            return False  # the holder has ended
        if now != before:
            return True
    return False


def _read(path: Path) -> Lease | None:
    """The lease; None if there is none, or one that cannot be read, as nobody can hold it."""
    try:
        return Lease(**json_object(from_json(path.read_bytes())))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, lease: Lease) -> None:
    write_atomic(path, to_json(asdict(lease)))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
