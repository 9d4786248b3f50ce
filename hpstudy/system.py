"""What the system says of this machine: its cores, its memory, and how often memory ran out."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 0x7FFFFFFF
# NVIDIA's, on its small boards too, Windows' under WSL, AMD's
GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
PR_SET_PDEATHSIG = 1  # prctl.h


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU that torch can use, without asking torch, which takes a second to import."""
    return sys.platform != "darwin" and any(Path(driver).exists() for driver in GPU_DRIVERS)


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory instead of returning it to the kernel. False without glibc.

    A training step frees and takes the same large blocks over and over. By default the kernel maps and zeroes each
    block again, and small steps took 1.4 times as long. Call this before the first large allocation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_gib() -> float:
    """The most main memory this process has used so far."""
    if (mark := _gib("/proc/self/status", "VmHWM:")) is not None:
        return mark  # on Linux rusage starts at the parent's value after a fork
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def room_gib() -> float:
    """The main memory this process could use: its peak plus what is free, within the limits of its control groups.

    Infinite when the system does not report free memory.
    """
    free = _gib("/proc/meminfo", "MemAvailable:")
    return min([math.inf if free is None else peak_gib() + free, *(limit / 2**30 for limit in _memory_limits())])


def installed_gib() -> float:
    """The main memory of this machine, or the limit of this process's control groups if that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits()]) / 2**30


def end_with_parent() -> None:
    """Has Linux kill this process when its parent ends, even while it is stopped. Does nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def oom_kills(pid: int) -> int:
    """How often the kernel has killed a process of this control group because memory ran out; 0 if it does not say."""
    for version, folder in _cgroups(str(pid)):
        counter = folder / ("memory.oom_control" if version == 1 else "memory.events")
        with contextlib.suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE):
                return int(found[1])
    return 0


def _gib(file: str, key: str) -> float | None:
    """One entry of a Linux file that counts KiB; None on other systems."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(file).read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**20
    return None


def _memory_limits() -> Iterator[int]:
    """The memory limits, in bytes, of this process's control groups and of all groups above them."""
    for version, folder in _cgroups("self"):
        limit = folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        with contextlib.suppress(OSError, ValueError):  # the file is missing, or says "max"
            yield int(limit.read_text())


def _cgroups(pid: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each memory control group of a process, from its own up to the root."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            version, root = 1, CGROUPS / "memory"
        elif hierarchy == "0":
            version, root = 2, CGROUPS
        else:
            continue
        folder = root / group.lstrip("/")
        while True:
            yield version, folder
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
