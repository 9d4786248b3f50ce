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
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hpstudy.errors import MachineError, UserError
from hpstudy.files import to_json, write_atomic, writing

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
    since: str = ""  # ISO 8601, UTC; "" in leases of versions before 0.3

    def __str__(self) -> str:
        """The holder, for messages."""
        return f"pid {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether the holder was a process of this host that has ended."""
        return bool(self.place) and self.place == _place() and not _alive(self.pid)


_LEASE = TypeAdapter(Lease)


def held(folder: Path, holder: str) -> UserError:
    """The refusal of a second driver."""
    return UserError(f"{folder}: another hpstudy ({holder}) runs this study; wait for it, or end it")


class Holding:
    """A lease that this process holds until another driver takes it over."""

    def __init__(self, path: Path, mine: Lease, on_lost: Callable[[], None]) -> None:
        self._path, self._mine, self._on_lost = path, mine, on_lost
        self._seen, self._lost = _clock(), False

    def __str__(self) -> str:
        return str(self._mine)

    def refuse_if_lost(self) -> None:
        """Raises MachineError if another driver has the study. To be called before each write: it looks after a gap.

        A process that was held for long wakes up and would go on writing before it could notice.
        """
        if not self._lost and _clock() - self._seen > 3 * BEAT_SECONDS:
            self.look()
        if self._lost:
            raise MachineError(
                f"{self._path.parent}: another hpstudy has taken over this study, because this one was held for too "
                "long; it writes nothing more"
            )

    def look(self) -> bool:
        """Whether the lease is still ours. A lease that is gone was taken over and given back."""
        try:
            found = _parsed(self._path.read_bytes())
        except FileNotFoundError:
            found = None
        except OSError:  # a network file system that stutters
            return not self._lost
        if found is not None and found.token == self._mine.token:
            self._seen = _clock()
        elif not self._lost:
            self._lost = True
            self._on_lost()
        return not self._lost


@contextmanager
def leased(folder: Path, on_lost: Callable[[], None]) -> Iterator[Holding]:
    """Holds the lease of a study. Calls `on_lost`, perhaps from another thread, if another driver has taken it over.

    Raises UserError if another driver holds it.
    """
    path = folder / LEASE
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = Lease(host=platform.node(), pid=os.getpid(), token=uuid.uuid4().hex, beat=0, place=_place(), since=since)
    if not _claim(path, mine):
        found = _read_soon(path)
        own = found is not None and found.is_dead
        if found is not None and not own and _beats(path, found):
            raise held(folder, str(found))
        _write(path, mine)
        time.sleep(0.01 if own else 2 * BEAT_SECONDS)
        if (now := _read(path)) is None or now.token != mine.token:  # two took it over at once; the last one has it
            raise held(folder, str(now))
    done, holding = threading.Event(), Holding(path, mine, on_lost)
    keeper = threading.Thread(target=_keep, args=(path, mine, done, holding), name="lease", daemon=True)
    keeper.start()
    try:
        yield holding
    finally:
        done.set()
        keeper.join()
        if (last := _read(path)) is not None and last.token == mine.token:
            with contextlib.suppress(OSError):
                path.unlink()


def holder(folder: Path) -> Lease | None:
    """Who writes a study now, without waiting: None if nobody does, or if the holder has ended or gone silent.

    On another host a holder counts as silent after LOST_SECONDS by this machine's clock.
    """
    found = _read(folder / LEASE)
    if found is None or found.is_dead:
        return None
    if found.place and found.place == _place():
        return found  # a live process of this host, also while it is suspended
    with contextlib.suppress(OSError):
        if abs(time.time() - (folder / LEASE).stat().st_mtime) < LOST_SECONDS:
            return found
    return None


def _keep(path: Path, mine: Lease, done: threading.Event, holding: Holding) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS) and holding.look():
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
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(content: bytes) -> Lease | None:
    try:
        return _LEASE.validate_json(content, strict=True)
    except ValidationError:
        return None


def _clock() -> float:
    """Seconds that also count while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
