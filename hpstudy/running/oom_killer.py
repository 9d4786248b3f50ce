"""How often the kernel's out-of-memory killer struck where a process lives: Linux keeps a count per control group."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def oom_kills(pid: int) -> int:
    """Kills for want of memory in the process's control group so far; 0 where the system does not tell."""
    for counter in _counters(pid):
        with contextlib.suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE):
                return int(found[1])
    return 0


def _counters(pid: int) -> list[Path]:
    """The files that may hold the count, the likeliest first; a container may see its own group as the root."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    counters = []
    for line in lines:
        hierarchy, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):  # version 1
            counters += [CGROUPS / "memory" / folder / "memory.oom_control" for folder in (group.lstrip("/"), "")]
        elif hierarchy == "0":  # version 2
            counters += [CGROUPS / folder / "memory.events" for folder in (group.lstrip("/"), "")]
    return counters
