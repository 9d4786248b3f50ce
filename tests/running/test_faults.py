"""Whatever happens to a study, it ends as if nothing had: real processes, signals, files and limits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_interruptions import start_cli, wait_for_step

from hpstudy.errors import MachineError
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.tracking.store import RunStore
from studies import Watch, curves, go, inherit, trials
from tests.faults import (
    FAULTS,
    SAID,
    Fault,
    Losses,
    attempt,
    losses,
    moment,
    send,
    session,
    untouched,
    workers_of,
    write_study,
)
from tests.faults import struck as strike

(KILL_BOTH,) = (fault for fault in FAULTS if fault.name == "kill -9 of both")
LONG = {"tokens = 5120": "tokens = 1280000"}  # 5,000 steps, so that signals meet a run in the air
MIDDLING = {"tokens = 5120": "tokens = 384000"}  # 1,500 steps, of studies that are to end


@pytest.fixture
def whole(reference, tmp_path: Path) -> RunStore:
    """The tiny study, uninterrupted."""
    if "store" not in reference:
        (tmp_path / "whole").mkdir()
        reference["store"] = untouched(tmp_path / "whole")
    return reference["store"]


def struck(fault: Fault, folder: Path, whole: RunStore, seed: int, most: int) -> str:
    """What the sessions of a struck study said; it has lost nothing."""
    folder.mkdir()
    times, lost = attempt(fault, folder, whole, seed, most)
    assert (times > 0, lost) == (True, Losses())
    return (folder / SAID).read_text()


def stopped_at(trial: int, step: int) -> tuple[Watch, StopRequest]:
    """A view and a request to stop at that step."""
    stop = StopRequest()

    def ask(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.trial, record.step) == (trial, step)

    return Watch(ask), stop


def interrupt(study, runs: Path, trial: int, step: int) -> Path:
    """Stops the study at a step, which leaves a checkpoint; returns the run's folder."""
    watch, stop = stopped_at(trial, step)
    with pytest.raises(Interrupted):
        go(study, runs, watch=watch, stop=stop)
    return runs / study.name / f"search-{trial:04d}"


def edit_loss(folder: Path, step: int) -> None:
    """Changes a recorded loss, so that training that step again cannot go unnoticed."""
    lines = (folder / "steps.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[step - 1])
    lines[step - 1] = json.dumps(row | {"train/loss": row["train/loss"] * (1 + 1e-12)}) + "\n"
    (folder / "steps.jsonl").write_text("".join(lines))


def test_killed_at_random_moments_a_study_loses_nothing_and_goes_on_from_its_checkpoints(tmp_path, whole):
    said = struck(KILL_BOTH, tmp_path / "struck", whole, seed=3, most=2)
    assert "goes on after step" in said
    assert "cannot be used" not in said  # a kill leaves the checkpoint before, never half a one


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_study_struck_ten_times_loses_nothing(tmp_path: Path, whole, fault: Fault):
    said = struck(fault, tmp_path / "struck", whole, seed=100, most=10)
    assert ("cannot be used" in said) <= (fault.name == "kill -9, files cut short")


@pytest.mark.slow
def test_four_workers_killed_twenty_times_change_nothing(tmp_path: Path):
    stores = []
    for name, most in (("whole", 0), ("struck", 20)):
        (tmp_path / name).mkdir()
        study = write_study(tmp_path / name)
        study.write_text(study.read_text().replace("parallel = 2", "parallel = 4").replace("trials = 5", "trials = 40"))
        assert strike(KILL_BOTH if most == 0 else replace(KILL_BOTH, workers=4), study, random.Random(7), most) == most
        stores.append(RunStore(tmp_path / name / "tiny"))
    assert losses(stores[1], stores[0]) == Losses()


def test_a_step_that_comes_out_otherwise_is_an_error_that_names_it(tiny, tmp_path: Path):
    study = tiny()
    folder = interrupt(study, tmp_path, 0, 9)
    edit_loss(folder, 4)
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(MachineError, match=r"search-0000/steps\.jsonl: step 4 trained again gives train/loss"):
        go(study, tmp_path)


def test_steps_before_the_checkpoint_are_not_trained_again(tiny, tmp_path: Path):
    study = tiny(replace={"trials = 5": "trials = 1"})
    edit_loss(interrupt(study, tmp_path, 0, 9), 4)
    watch = Watch()
    store = go(study, tmp_path, watch=watch)
    assert any(line.startswith("search-0000: goes on after step ") for line in watch.said)
    assert len(curves(store)["search-0000"]) == 20


def test_a_damaged_or_foreign_checkpoint_is_said_and_its_run_trained_again(tiny, tmp_path: Path, uninterrupted):
    study = tiny()
    garbled = interrupt(study, tmp_path, 0, 9) / "checkpoint.pt"
    foreign = garbled.read_bytes()
    garbled.write_bytes(foreign[:-300].replace(foreign[1000:1100], bytes(100)) + foreign[-300:])
    watch, stop = stopped_at(1, 9)
    with pytest.raises(Interrupted):
        go(study, tmp_path, watch=watch, stop=stop)
    (tmp_path / "tiny" / "search-0001" / "checkpoint.pt").write_bytes(foreign)
    again = Watch()
    store = go(study, tmp_path, watch=again)
    assert [line for line in watch.said if "search-0000" in line and "damaged" in line and "from step 1" in line]
    assert [line for line in again.said if "search-0001" in line and "belongs to another run" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_checkpoint_ahead_of_damaged_steps_leaves_no_gap(tiny, tmp_path: Path, uninterrupted):
    study, watch = tiny(), Watch()
    steps = interrupt(study, tmp_path, 0, 9) / "steps.jsonl"
    steps.write_bytes(b"".join(steps.read_bytes().splitlines(keepends=True)[:5]))
    store = go(study, tmp_path, watch=watch)
    assert [line for line in watch.said if "but 5 steps are recorded); it trains again from step 1" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_training_goes_on(tiny, tmp_path: Path, uninterrupted):
    class Blocking(Watch):
        def start(self, run: Run) -> None:
            (tmp_path / "tiny" / run.run_id / "checkpoint.pt.part").mkdir()  # where the file should be written

    study, watch = tiny(), Blocking()
    store = go(study, tmp_path, watch=watch, checkpoint_seconds=0.0)
    said = [line for line in watch.said if "no checkpoint could be written" in line]
    assert len(said) == len({line.split(":")[0] for line in said}) > 0
    assert (trials(study, store), curves(store)) == uninterrupted


def test_results_and_journal_that_were_lost_come_back_from_the_steps_alone(tiny, tmp_path: Path):
    study = tiny(
        replace={"trials = 5": "trials = 10", "low = 1e-4, high = 3e-2": "low = 1e-4, high = 1e7"},
        more='pruner = { name = "median", startup = 1, from_fraction = 0.25 }',
    )
    store = go(study, tmp_path)
    told, outcomes = trials(study, store), [view.result.outcome for view in store.runs()]
    assert {Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED} <= set(outcomes)
    (store.root / "optuna.journal").unlink()
    for view in store.runs():
        (view.folder / "result.json").unlink()
        edit_loss(view.folder, 1)
    again = go(study, tmp_path)
    assert [view.result.outcome for view in again.runs()] == outcomes
    assert trials(study, again) == told


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's server takes every call and answers none."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("hanging")
def test_a_signal_leaves_a_checkpoint_and_ends_within_ten_seconds_even_if_wandb_hangs(tiny_file, tmp_path, number):
    runs, path = tmp_path / "runs", tiny_file(replace=LONG)
    process = start_cli(path, runs, wandb="online")
    wait_for_step(runs, "search-0000", process)
    began = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert f"hpstudy run {path} --runs {runs}" in stderr
    assert "Traceback" not in stderr
    assert (runs / "tiny" / "search-0000" / "checkpoint.pt").exists()


def test_a_signal_to_every_process_at_once_leaves_a_checkpoint_too(tiny_file, tmp_path: Path):
    runs, path = tmp_path / "runs", tiny_file(replace=LONG)
    process = start_cli(path, runs, workers="1")
    wait_for_step(runs, "search-0000", process)
    for pid in (*workers_of(process.pid), process.pid):  # as when a cluster takes the machine
        os.kill(pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "died" not in stderr
    assert (runs / "tiny" / "search-0000" / "checkpoint.pt").exists()


def test_four_hung_workers_do_not_hold_up_a_stop(tiny_file, tiny, tmp_path: Path):
    changes = {"parallel = 2": "parallel = 4", "trials = 5": "trials = 4", "tokens = 5120": "tokens = 128000"}
    runs, path = tmp_path / "runs", tiny_file(replace=changes)
    process = start_cli(path, runs, workers="4")
    wait_for_step(runs, "search-0003", process)
    workers = workers_of(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert (len(workers), process.returncode) == (4, 130)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    study = tiny(replace=changes)
    stores = go(study, runs, workers=2), go(study, tmp_path / "whole", workers=2)
    assert curves(stores[0]) == curves(stores[1])
    assert trials(study, stores[0]) == trials(study, stores[1])


def test_a_second_ctrl_c_stops_at_once(tiny_file, tmp_path: Path):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(replace=LONG), runs)
    wait_for_step(runs, "search-0000", process)
    workers = workers_of(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # so that their last checkpoints are waited for
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 4  # one of them for hung workers to end
    assert process.returncode == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_hung_worker_is_ended_and_its_run_goes_on(tiny, tmp_path: Path, uninterrupted):
    study, hung = tiny(more="hang_seconds = 1"), []

    def hang(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (2, 5) and not hung:
            hung.extend(workers_of(os.getpid()))
            os.kill(hung[0], signal.SIGSTOP)

    watch = Watch(hang)
    store = go(study, tmp_path, watch=watch)
    assert any("search-0002: nothing heard for" in line for line in watch.said)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_hung_worker_is_ended_while_another_is_busy(tiny, tmp_path: Path):
    class Timely(Watch):
        def say(self, line: str) -> None:
            super().say(f"{line} ({len(self.finished)} finished)")

    study, begun, hung = tiny(replace=MIDDLING | {"trials = 5": "trials = 2"}, more="hang_seconds = 1"), set(), []

    def hang(run: Run, _: StepRecord) -> None:
        begun.add(run.trial)
        if len(begun) == 2 and not hung:
            hung.extend(workers_of(os.getpid()))
            os.kill(hung[0], signal.SIGSTOP)

    watch = Timely(hang)
    store = go(study, tmp_path, watch=watch, workers=2)
    assert [line for line in watch.said if "nothing heard" in line and "(0 finished)" in line]
    assert [view.result.outcome for view in store.runs()] == [Outcome.COMPLETE, Outcome.COMPLETE]


SLOW_TO_BEGIN = """
import time
from multiprocessing.connection import Connection

receive = Connection.recv


def slowly(self):
    order = receive(self)
    time.sleep(0.7 if type(order).__name__ == "Train" else 0)
    return order


Connection.recv = slowly
"""


def test_the_start_of_a_worker_is_not_counted_as_its_silence(tiny, tmp_path: Path, uninterrupted, monkeypatch):
    inherit(tmp_path / "site", SLOW_TO_BEGIN, monkeypatch)
    study, watch = tiny(more="hang_seconds = 1"), Watch()
    store = go(study, tmp_path, watch=watch, workers=2)  # the second one has its run from before it is ready
    assert not [line for line in watch.said if "nothing heard" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


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
    inherit(folder, JUMPING, monkeypatch)
    study = write_study(tmp_path, "hang_seconds = 5")
    began = time.monotonic()
    with session(study) as driver:
        assert driver.wait() == 0, (tmp_path / SAID).read_text()
    took = time.monotonic() - began
    assert len([path for path in folder.iterdir() if path.name.isdigit()]) >= 2  # the driver and its worker
    store = RunStore(tmp_path / "tiny")
    started = [view.header.started for view in store.runs()]
    assert started != sorted(started)
    assert losses(store, whole) == Losses()
    assert "nothing heard" not in (tmp_path / SAID).read_text()
    for view in store.runs():
        assert all(0 < r.step_seconds < took and r.tok_per_sec > 0 for r in view.records())
        assert 0 < view.result.train_seconds < took


def test_workers_that_slept_along_with_their_driver_are_not_taken_for_hung(tmp_path: Path, whole):
    study = write_study(tmp_path, "hang_seconds = 2")
    with session(study) as driver:
        for _ in range(2):
            assert moment(driver, tmp_path / "tiny", random.Random(0), anytime=False)
            (worker,) = workers_of(driver.pid)
            send(worker, signal.SIGSTOP)  # first, so that the driver wakes with nothing to read
            time.sleep(0.3)
            send(driver.pid, signal.SIGSTOP)
            time.sleep(3)
            send(driver.pid, signal.SIGCONT)
            time.sleep(0.7)
            send(worker, signal.SIGCONT)
        assert driver.wait() == 0, (tmp_path / SAID).read_text()
    assert "nothing heard" not in (tmp_path / SAID).read_text()
    assert losses(RunStore(tmp_path / "tiny"), whole) == Losses()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of some size, or gives the one that is mounted another."""
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


def test_a_full_disk_is_a_clear_error_and_space_is_all_it_needs(whole, small_disk):
    folder = small_disk("size=64k")
    study = write_study(folder)
    with session(study) as driver:
        assert driver.wait() == 1
    said = (folder / SAID).read_text()
    small_disk("size=16m")
    with session(study) as driver:
        assert driver.wait() == 0, (folder / SAID).read_text()
    assert "Traceback" not in said
    assert losses(RunStore(folder / "tiny"), whole) == Losses()


def test_a_folder_that_may_only_be_read_is_refused_before_anything_runs(tmp_path: Path, small_disk):
    folder = small_disk("size=1m")
    small_disk("ro")
    process = start_cli(write_study(tmp_path), folder)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "the folder of runs must be writable" in stderr
    assert "--runs" in stderr


@contextlib.contextmanager
def memory_group(limit: int | None = None) -> Iterator[Path]:
    """A control group of its own, version 1."""
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


def in_group(study: Path, group: Path) -> int:
    with session(study) as driver:
        (group / "cgroup.procs").write_text(str(driver.pid))  # long before its worker is started
        return driver.wait()


def big_study(folder: Path, micro_batch: int, more: str = "") -> Path:
    """Three steps of 4,096 sequences, without a ramp: memory goes with the micro-batch."""
    folder.mkdir()
    path, text = write_study(folder, more), ""
    for line in path.read_text().splitlines(keepends=True):
        key = line.partition(" = ")[0]
        big = {"batch_tokens": "65536", "tokens": "196608", "trials": "1"}
        big["micro_batch"] = f"{micro_batch}\nbatch_ramp_fraction = 0.0"
        text += f"{key} = {big[key]}\n" if key in big else line
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("whole")  # after it the corpus is tokenized, which takes memory too
def test_a_worker_killed_for_want_of_memory_is_tried_again_smaller_with_the_same_losses(tmp_path: Path):
    fits = big_study(tmp_path / "fits", 2048)
    with memory_group() as group:
        assert in_group(fits, group) == 0
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    expected = [r.loss for r in RunStore(fits.parent / "tiny").view("search-0000").records()]
    tried, refused = (
        big_study(tmp_path / name, 4096, more)
        for name, more in (("tried", ""), ("refused", "smaller_micro_batch = false"))
    )
    with memory_group(peak + (48 << 20)) as group:
        assert in_group(tried, group) == 0, (tried.parent / SAID).read_text()
        assert in_group(refused, group) == 0, (refused.parent / SAID).read_text()
    assert "search-0000: out of memory at micro_batch 4096; tried again at 2048" in (tried.parent / SAID).read_text()
    view = RunStore(tried.parent / "tiny").view("search-0000")
    assert view.result.outcome is Outcome.COMPLETE
    assert [r.loss for r in view.records()] == expected
    result = RunStore(refused.parent / "tiny").result("search-0000")
    assert result.outcome is Outcome.OUT_OF_MEMORY
    assert "at micro_batch 4096" in result.message
