"""Main memory: what is used and free, the limits of control groups of both versions, and the kernel's kills."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy import system
from hpstudy.system import installed_gib, keep_freed_memory, oom_kills, peak_gib, room_gib

GIB = 2**30
MACHINE_GIB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
ROOT = Path(__file__).parents[1]
PID = 4321
Fake = Callable[[dict[str, str]], None]

# What the kernel counts in both versions of control groups
V1_COUNTER = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2_COUNTER = "low 0\nhigh 0\nmax 9\noom 8\noom_kill {}\noom_group_kill 7\n"


@pytest.fixture
def fake_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Replaces /proc and the control groups by files with these contents; all others are missing."""
    real = Path.read_text
    proc: dict[str, str] = {}

    def read_text(path: Path, *args, **kwargs) -> str:
        if path.parts[:2] != ("/", "proc"):
            return real(path, *args, **kwargs)
        if str(path) in proc:
            return proc[str(path)]
        raise FileNotFoundError(path)

    def write(files: dict[str, str]) -> None:
        for name, content in files.items():
            if name.startswith("/proc/"):
                proc[name] = content
            else:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(system, "CGROUPS", tmp_path)
    return write


# This process


def test_the_room_is_what_the_process_has_used_and_what_is_free() -> None:
    assert 0 < peak_gib() < room_gib() <= MACHINE_GIB + peak_gib()


def test_the_peak_grows_by_what_a_process_takes() -> None:
    code = """
from hpstudy.system import peak_gib
before = peak_gib()
block = b"x" * 2**28
print(peak_gib() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) == pytest.approx(0.25, abs=0.01)


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_freed_memory_is_kept_and_not_fetched_again() -> None:
    code = """
import resource
import numpy as np
from hpstudy.system import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.full(2**23, 1.0)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
assert keep_freed_memory()
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = map(int, done.stdout.split())
    assert before > 100
    assert after < 100


# What the kernel reports


def test_peak_and_room_are_read_from_proc(fake_files: Fake) -> None:
    fake_files(
        {
            "/proc/self/status": "Name:\tpython\nVmPeak:\t 9000000 kB\nVmHWM:\t 1048576 kB\nVmRSS:\t 77 kB\n",
            "/proc/meminfo": "MemTotal: 99000000 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n",
        }
    )
    assert peak_gib() == 1
    assert room_gib() == 5


def test_the_room_is_infinite_and_the_peak_that_of_rusage_on_a_system_without_proc(fake_files: Fake) -> None:
    fake_files({})
    assert room_gib() == math.inf
    assert 0 < peak_gib() < MACHINE_GIB
    assert installed_gib() == pytest.approx(MACHINE_GIB)
    assert oom_kills(PID) == 0


# Limits of control groups


@pytest.mark.parametrize(
    ("groups", "limit"),
    [
        ("5:memory:/jobs/mine\n1:cpu:/\n", "memory/{}/memory.limit_in_bytes"),
        ("5:cpu,memory:/jobs/mine\n", "memory/{}/memory.limit_in_bytes"),
        ("0::/jobs/mine\n", "{}/memory.max"),
    ],
    ids=["version 1", "version 1, shared hierarchy", "version 2"],
)
@pytest.mark.parametrize("folder", ["jobs/mine", "jobs", "."])
def test_the_lowest_limit_of_a_group_or_one_above_it_holds(
    fake_files: Fake, groups: str, limit: str, folder: str
) -> None:
    files = {limit.format(name): str(2**62) for name in ("jobs/mine", "jobs", ".")}
    fake_files({"/proc/self/cgroup": groups, **files})
    assert installed_gib() == pytest.approx(MACHINE_GIB)
    fake_files({limit.format(folder): f"{GIB // 2}\n"})
    assert installed_gib() == room_gib() == 0.5


def test_a_group_of_version_2_without_a_limit_says_max(fake_files: Fake) -> None:
    fake_files({"/proc/self/cgroup": "0::/mine\n", "mine/memory.max": "max\n"})
    assert installed_gib() == pytest.approx(MACHINE_GIB)
    assert room_gib() == math.inf


def test_a_container_finds_its_limit_at_the_root_of_what_it_sees(fake_files: Fake) -> None:
    fake_files({"/proc/self/cgroup": "0::/docker/abc\n", "memory.max": str(GIB // 2)})
    assert installed_gib() == 0.5
    fake_files({"/proc/self/cgroup": "0::/../../other\n"})  # as seen in another namespace
    assert installed_gib() == 0.5


def test_limits_of_both_versions_hold_on_a_system_with_both(fake_files: Fake) -> None:
    fake_files({"/proc/self/cgroup": "5:memory:/mine\n0::/mine\n", "mine/memory.max": str(GIB // 2)})
    assert installed_gib() == 0.5
    fake_files({"memory/mine/memory.limit_in_bytes": str(GIB // 4)})
    assert installed_gib() == 0.25


def test_limits_outside_the_groups_of_the_process_do_not_hold(fake_files: Fake) -> None:
    fake_files({"/proc/self/cgroup": "3:cpu:/mine\n0::/mine\n", "other/memory.max": "1", "mine/below/memory.max": "1"})
    fake_files({"memory/mine/memory.limit_in_bytes": "1"})  # no line names a memory group of version 1
    assert installed_gib() == pytest.approx(MACHINE_GIB)


# Kills for want of memory


@pytest.mark.parametrize(
    ("groups", "counter", "content"),
    [
        ("5:memory:/jobs/mine\n", "memory/jobs/mine/memory.oom_control", V1_COUNTER),
        ("5:cpu,memory:/jobs/mine\n", "memory/jobs/mine/memory.oom_control", V1_COUNTER),
        ("5:memory:/docker/abc\n", "memory/memory.oom_control", V1_COUNTER),
        ("0::/jobs/mine\n", "jobs/mine/memory.events", V2_COUNTER),
        ("0::/docker/abc\n", "memory.events", V2_COUNTER),
    ],
    ids=["version 1", "version 1, shared hierarchy", "version 1, container", "version 2", "version 2, container"],
)
def test_kills_are_counted_in_the_group_of_the_process(
    fake_files: Fake, groups: str, counter: str, content: str
) -> None:
    fake_files({f"/proc/{PID}/cgroup": groups, "/proc/self/cgroup": "0::/self\n"})
    fake_files({"self/memory.events": V2_COUNTER.format(5)})
    assert oom_kills(PID) == 0  # the counter is missing
    for kills in (0, 3, 12):
        fake_files({counter: content.format(kills)})
        assert oom_kills(PID) == kills


def test_the_group_of_the_process_counts_before_the_groups_above_it(fake_files: Fake) -> None:
    fake_files({f"/proc/{PID}/cgroup": "0::/jobs/mine\n"})
    fake_files({"memory.events": V2_COUNTER.format(9), "jobs/memory.events": V2_COUNTER.format(6)})
    assert oom_kills(PID) == 6
    fake_files({"jobs/mine/memory.events": V2_COUNTER.format(2)})
    assert oom_kills(PID) == 2


def test_a_kernel_without_the_counter_has_no_kills(fake_files: Fake) -> None:
    fake_files({f"/proc/{PID}/cgroup": "5:memory:/\n", "memory/memory.oom_control": "oom_kill_disable 0\n"})
    assert oom_kills(PID) == 0


def test_a_process_that_has_ended_has_no_kills(fake_files: Fake) -> None:
    fake_files({"memory.events": V2_COUNTER.format(9)})
    assert oom_kills(PID) == 0
