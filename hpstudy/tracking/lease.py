"""Which driver may write a study: a file with its host, pid and heartbeat, for file systems whose locks do not work.

`flock` is missing on some network file systems, and on others it only holds within one host. A driver keeps the lease
by changing it every BEAT_SECONDS. No clocks are compared: another driver takes over a lease that it has seen unchanged
for LOST_SECONDS, or at once if the holder was a process of its own host that is gone. A lease that is free is taken by
making its file, which only one driver can; one that is taken over is looked at again before it counts as held.
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
from hpstudy.files import from_json, json_object, to_json, write_atomic, writing

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
    place: str = ""  # where pid is that process: two containers may have the same host name

    def __str__(self) -> str:
        """The holder, for messages."""
        return f"pid {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether the holder was a process of this host that has ended."""
        return bool(self.place) and self.place == _place() and not _alive(self.pid)


def held(folder: Path, holder: str) -> UserError:
    """The refusal of a second driver."""
    return UserError(f"{folder}: another hpstudy ({holder}) runs this study; wait for it, or end it")


@contextmanager
def leased(folder: Path, on_lost: Callable[[], None]) -> Iterator[Lease]:
    """Holds the lease of a study. Calls `on_lost`, from another thread, if another driver has taken it over.

    Raises UserError if another driver holds it.
    """
    path = folder / LEASE
    mine = Lease(host=platform.node(), pid=os.getpid(), token=uuid.uuid4().hex, beat=0, place=_place())
    if not _claim(path, mine):
        found = _read_soon(path)
        own = found is not None and found.is_dead
        if found is not None and not own and _beats(path, found):
            raise held(folder, str(found))
        _write(path, mine)
        time.sleep(0.01 if own else 2 * BEAT_SECONDS)
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


def _claim(path: Path, mine: Lease) -> bool:
    """Takes a lease that is free. False if there is one."""
    try:
        with writing(path), path.open("xb") as file:
            file.write(to_json(asdict(mine)).encode())
    except MachineError as error:
        if isinstance(error.__cause__, FileExistsError):
            return False
        raise
    return True


def _read_soon(path: Path) -> Lease | None:
    """The lease, which its holder may just be writing; None if it stays unreadable."""
    deadline = time.monotonic() + BEAT_SECONDS
    while (found := _read(path)) is None and path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _read(path: Path) -> Lease | None:
    """The lease; None if there is none, or one that cannot be read, as nobody can hold it."""
    try:
        return Lease(**json_object(from_json(path.read_bytes())))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, lease: Lease) -> None:
    write_atomic(path, to_json(asdict(lease)))


def _place() -> str:
    """The boot of this machine and the namespace of its pids; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
