"""Faults at random moments, jumping clocks, full disks and scarce memory lose no step and no trial of a study."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.records import Outcome
from hpstudy.tracking.store import RunStore
from tests.bench.faults import (
    FAULTS,
    OUTPUT,
    Fault,
    Losses,
    attempt,
    kill_both,
    losses,
    run_with_fault,
    send,
    session,
    write_study,
)
from tests.helpers.running import run_at_start, start_cli

(KILL_BOTH,) = (fault for fault in FAULTS if fault.name == "kill -9 of both")


def output_of(fault: Fault, folder: Path, whole: RunStore, seed: int, most: int) -> str:
    """What the sessions of a study with faults printed, after a check that the study lost nothing."""
    folder.mkdir()
    times, _refused, lost = attempt(fault, folder, whole, seed, most)
    assert (times > 0, lost) == (True, Losses())
    return (folder / OUTPUT).read_text()


def kill_with_a_checkpoint(driver: subprocess.Popen[bytes], store: Path, rng: random.Random) -> None:
    """Kills both while a run in training has a checkpoint. The driver is held meanwhile, or the run might just end."""
    while driver.poll() is None:
        send(driver.pid, signal.SIGSTOP)
        time.sleep(0.002)
        if any(not path.with_name("result.json").exists() for path in store.glob("*/checkpoint.pt")):
            break
        send(driver.pid, signal.SIGCONT)
        time.sleep(0.002)
    kill_both(driver, store, rng)


def test_a_study_killed_at_random_moments_loses_nothing_and_resumes_from_its_checkpoints(tmp_path, whole):
    fault = replace(KILL_BOTH, inject=kill_with_a_checkpoint)
    output = output_of(fault, tmp_path / "faulty", whole, seed=3, most=2)
    assert "resumes after step" in output
    assert "cannot be used" not in output  # a kill leaves the checkpoint before, never half of one


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_study_with_three_faults_loses_nothing(tmp_path: Path, whole, fault: Fault):
    output = output_of(fault, tmp_path / "faulty", whole, seed=100, most=3)
    assert ("cannot be used" in output) <= (fault.name in ("kill -9, files cut short", "kill -9, a byte changed"))


@pytest.mark.slow
def test_killing_four_workers_ten_times_changes_nothing(tmp_path: Path):
    stores = []
    for name, most in (("whole", 0), ("faulty", 10)):
        (tmp_path / name).mkdir()
        study = write_study(tmp_path / name)
        study.write_text(study.read_text().replace("parallel = 2", "parallel = 4").replace("trials = 5", "trials = 24"))
        fault = replace(KILL_BOTH, workers=4) if most else KILL_BOTH
        assert run_with_fault(fault, study, random.Random(7), most) == (most, 0)
        stores.append(RunStore(tmp_path / name / "tiny"))
    assert losses(stores[1], stores[0]) == Losses()


JUMPING = """
import datetime
import itertools
import os
import time
from pathlib import Path

Path(__file__).with_name(str(os.getpid())).touch()
hours, now = itertools.cycle([0, 9, -30, 2, -7]), time.time
time.time = lambda: now() + 3600 * next(hours)
time.time_ns = lambda: int(time.time() * 1e9)


class datetime_(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)


datetime.datetime = datetime_
"""


def test_a_clock_that_jumps_by_hours_changes_nothing(tmp_path: Path, whole, monkeypatch):
    folder = tmp_path / "jumping"
    run_at_start(folder, JUMPING, monkeypatch)
    study = write_study(tmp_path, "hang_seconds = 5")
    began = time.monotonic()
    with session(study) as driver:
        assert driver.wait() == 0, (tmp_path / OUTPUT).read_text()
    took = time.monotonic() - began
    assert len([path for path in folder.iterdir() if path.name.isdigit()]) >= 2  # the driver and its worker
    store = RunStore(tmp_path / "tiny")
    started = [view.header.started for view in store.runs()]
    assert started != sorted(started)
    assert losses(store, whole) == Losses()
    assert "no report for" not in (tmp_path / OUTPUT).read_text()
    for view in store.runs():
        assert all(0 < r.step_seconds < took and r.tok_per_sec > 0 for r in view.records())
        assert 0 < view.result.train_seconds < took


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with some options, or changes the options of the one that is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        how = f"remount,{options}" if os.path.ismount(folder) else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_without_a_traceback_and_more_space_is_enough_to_resume(whole, small_disk):
    folder = small_disk("size=64k")
    study = write_study(folder)
    with session(study) as driver:
        assert driver.wait() == 1
    output = (folder / OUTPUT).read_text()
    small_disk("size=16m")
    with session(study) as driver:
        assert driver.wait() == 0, (folder / OUTPUT).read_text()
    assert "Traceback" not in output
    assert losses(RunStore(folder / "tiny"), whole) == Losses()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path, small_disk):
    folder = small_disk("size=1m")
    small_disk("ro")
    process = start_cli(write_study(tmp_path), folder)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "the folder of runs must be writable" in stderr
    assert "--runs" in stderr


@contextlib.contextmanager
def memory_group(limit: int | None = None) -> Iterator[Path]:
    """A control group of its own, version 1, with a limit in bytes."""
    folder = Path("/sys/fs/cgroup/memory") / f"hpstudy-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        if limit:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield folder
    finally:
        end = time.monotonic() + 20
        while (folder / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        folder.rmdir()


def run_in_group(study: Path, group: Path) -> int:
    """Runs a study in a control group; returns its exit code."""
    with session(study) as driver:
        (group / "cgroup.procs").write_text(str(driver.pid))  # long before its worker is started
        return driver.wait()


def write_big_study(folder: Path, micro_batch: int, more: str = "") -> Path:
    """Three steps of 8,192 sequences, without a ramp: the memory depends on the micro-batch."""
    folder.mkdir()
    path, text = write_study(folder, more), ""
    for line in path.read_text().splitlines(keepends=True):
        key = line.partition(" = ")[0]
        big = {"batch_tokens": "131072", "tokens": "393216", "trials": "1"}
        big["micro_batch"] = f"{micro_batch}\nbatch_ramp_fraction = 0.0"
        text += f"{key} = {big[key]}\n" if key in big else line
    path.write_text(f"{text}\n[confirm]\nseeds = []\n")  # the driver takes more memory once there is a verdict
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("whole")  # it tokenizes the corpus, so that only training takes memory here
def test_a_worker_killed_for_want_of_memory_is_tried_again_smaller_with_the_same_losses(tmp_path: Path):
    fits = write_big_study(tmp_path / "fits", 4096)
    with memory_group() as group:
        assert run_in_group(fits, group) == 0
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    expected = [r.loss for r in RunStore(fits.parent / "tiny").view("search-0000").records()]
    tried, refused = (
        write_big_study(tmp_path / name, 8192, more)
        for name, more in (("tried", ""), ("refused", "smaller_micro_batch = false"))
    )
    with memory_group(peak + (64 << 20)) as group:
        assert run_in_group(tried, group) == 0, (tried.parent / OUTPUT).read_text()
        assert run_in_group(refused, group) == 0, (refused.parent / OUTPUT).read_text()
    assert "search-0000: out of memory at micro_batch 8192; tried again at 4096" in (tried.parent / OUTPUT).read_text()
    view = RunStore(tried.parent / "tiny").view("search-0000")
    assert view.result.outcome is Outcome.COMPLETE
    assert [r.loss for r in view.records()] == expected
    result = RunStore(refused.parent / "tiny").result("search-0000")
    assert result.outcome is Outcome.OUT_OF_MEMORY
    assert "at micro_batch 8192" in result.message
