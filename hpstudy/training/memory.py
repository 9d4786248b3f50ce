"""How much memory a training takes and may take; and freed memory is kept, so that no step fetches it again."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 0x7FFFFFFF
CGROUPS = Path("/sys/fs/cgroup")


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from its heap and never to give them back; False where there is no glibc.

    A training step frees and takes the same large blocks over and over. By default each is mapped from the kernel and
    zeroed page by page: small steps took 1.4 times as long. Call it before the first large allocation. Not glibc:
    nothing changes but the speed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_gib() -> float:
    """The most main memory that this process has had until now."""
    if (mark := _gib("/proc/self/status", "VmHWM:")) is not None:
        return mark  # Linux's rusage begins with what the parent had when it forked
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def room_gib() -> float:
    """The main memory that this process has had and what is free besides, within its control groups' limits.

    Infinite where the system does not tell.
    """
    free = _gib("/proc/meminfo", "MemAvailable:")
    return min([math.inf if free is None else peak_gib() + free, *(limit / 2**30 for limit in _cgroup_limits())])


def installed_gib() -> float:
    """The main memory of this machine, or of the control groups that hold this process."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits()]) / 2**30


def _gib(file: str, key: str) -> float | None:
    """A line of one of Linux's files of KiB; None on other systems."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(file).read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**20
    return None


def _cgroup_limits() -> Iterator[int]:
    """The limits, in bytes, of this process's control groups of version 1 or 2 and of all above them."""
    files = {"": (CGROUPS, "memory.max"), "memory": (CGROUPS / "memory", "memory.limit_in_bytes")}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controller, path = line.split(":", 2)
            if controller in files:
                root, name = files[controller]
                group = root / path.lstrip("/")
                for folder in (group, *group.parents):
                    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                        yield int((folder / name).read_text())
