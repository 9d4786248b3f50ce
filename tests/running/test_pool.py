"""Workers that die or hang are replaced, and their runs end as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from hpstudy.errors import MachineError
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.interface import Options, Progress, StopRequest
from hpstudy.running.local import LocalExecutor, LocalWorker
from hpstudy.running.messages import Setup
from hpstudy.running.pool import WorkerPool
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink
from tests.bench.faults import OUTPUT, Losses, losses, send, session, wait_for_moment, write_study
from tests.helpers.running import (
    AWAITED,
    DEADLY,
    Watch,
    curves,
    kill_workers,
    run_at_start,
    run_here,
    slow_workers,
    trials,
    workers_of,
)


def test_constructing_a_pool_starts_no_process_and_writes_nothing(tiny, tmp_path: Path):
    wandb, progress, threads = Mock(spec=WandbSink), Mock(spec=Progress), threading.active_count()
    options = Options(runs=tmp_path / "runs", device="cpu", wandb="disabled", workers=2)
    executor = LocalExecutor(options.runs / "tiny")
    pool = WorkerPool(tiny(), RunStore(options.runs / "tiny"), wandb, options, progress, StopRequest(), executor)
    assert workers_of(os.getpid()) == []
    assert threading.active_count() == threads
    assert not options.runs.exists()
    assert wandb.mock_calls == progress.mock_calls == []
    pool.close()  # with nothing to end


def test_a_worker_that_is_killed_is_replaced_and_its_run_starts_again(tiny, tmp_path: Path, uninterrupted):
    study = tiny()
    killed: list[int] = []

    def kill(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (2, 5) and not killed:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    watch = Watch(kill)
    with slow_workers():
        store = run_here(study, tmp_path, watch=watch)
    assert len(killed) == 1
    assert watch.started.count("search-0002") == 2
    assert any("exit code -9" in line for line in watch.lines)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_run_whose_worker_always_dies_fails_and_the_study_continues(tiny, tmp_path: Path, monkeypatch):
    run_at_start(tmp_path / "site", DEADLY, monkeypatch)
    study, watch = tiny(replace={"trials = 5": "trials = 3"}), Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert [t.state for t in trials(study, store)] == ["complete", "failed", "complete"]
    result = store.result("search-0001")
    assert result.outcome is Outcome.FAILED
    assert "3 times in a row without a new step" in result.message
    assert (watch.started.count("search-0001"), result.steps) == (3, 9)


def test_a_run_whose_workers_die_continues_as_long_as_each_brings_new_steps(tiny, tmp_path: Path, uninterrupted):
    study, deadly = tiny(more=AWAITED), {5, 10, 15}

    def kill(run: Run, record: StepRecord) -> None:
        if run.trial == 1 and record.step in deadly:
            deadly.remove(record.step)  # later attempts show it again
            kill_workers()

    watch = Watch(kill)
    store = run_here(study, tmp_path, watch=watch)
    assert watch.started.count("search-0001") == 4
    assert (trials(study, store), curves(store)) == uninterrupted


def test_workers_that_die_while_they_start_are_replaced_twice_at_most(
    tiny, tmp_path: Path, uninterrupted, monkeypatch: pytest.MonkeyPatch
):
    started, doomed, start = [], {2, 4, 5, 6}, LocalExecutor.start

    def start_and_kill(self: LocalExecutor, setup: Setup, number: int) -> LocalWorker:
        started.append(start(self, setup, number))
        if len(started) in doomed:
            started[-1].kill()
        return started[-1]

    def kill(run: Run, record: StepRecord) -> None:
        first = watch.started.count(run.run_id) == 1
        if first and (run.run_id, record.step) in (("search-0001", 5), ("search-0003", 5)):
            kill_workers()

    monkeypatch.setattr(LocalExecutor, "start", start_and_kill)
    study, watch = tiny(more=AWAITED), Watch(kill)
    with slow_workers(), pytest.raises(MachineError, match="before it was ready, 3 times in a row"):
        run_here(study, tmp_path, watch=watch)
    assert "search-0001" in watch.finished
    assert len(started) == 6
    store = run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_hung_worker_is_ended_and_its_run_continues(tiny, tmp_path: Path, uninterrupted):
    study, hung = tiny(more="hang_seconds = 1"), []

    def hang(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (2, 5) and not hung:
            hung.extend(workers_of(os.getpid()))
            os.kill(hung[0], signal.SIGSTOP)

    watch = Watch(hang)
    with slow_workers():
        store = run_here(study, tmp_path, watch=watch)
    ended = re.compile(r"search-0002: no report for \d s; its worker is ended")  # 1 s, or more on a busy machine
    assert any(map(ended.fullmatch, watch.lines))
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_hung_worker_is_ended_while_another_is_busy(tiny, tmp_path: Path):
    class Counting(Watch):
        def say(self, line: str) -> None:
            super().say(f"{line} ({len(self.finished)} finished)")

    steps_1500 = {"tokens = 5120": "tokens = 384000"}
    study, begun, hung = tiny(replace=steps_1500 | {"trials = 5": "trials = 2"}, more="hang_seconds = 1"), set(), []

    def hang(run: Run, _: StepRecord) -> None:
        begun.add(run.trial)
        if len(begun) == 2 and not hung:
            hung.extend(workers_of(os.getpid()))
            os.kill(hung[0], signal.SIGSTOP)

    watch = Counting(hang)
    store = run_here(study, tmp_path, watch=watch, workers=2)
    assert [line for line in watch.lines if "no report for" in line and "(0 finished)" in line]
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


def test_the_start_of_a_worker_does_not_count_as_its_silence(tiny, tmp_path: Path, uninterrupted, monkeypatch):
    run_at_start(tmp_path / "site", SLOW_TO_BEGIN, monkeypatch)
    study, watch = tiny(more="hang_seconds = 1"), Watch()
    store = run_here(study, tmp_path, watch=watch, workers=2)  # the second has its run before it is ready
    assert not [line for line in watch.lines if "no report for" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


def test_workers_that_slept_along_with_their_driver_do_not_count_as_hung(tmp_path: Path, whole):
    study = write_study(tmp_path, "hang_seconds = 2")
    with session(study) as driver:
        for _ in range(2):
            assert wait_for_moment(driver, tmp_path / "tiny", random.Random(0), anytime=False)
            (worker,) = workers_of(driver.pid)
            send(worker, signal.SIGSTOP)  # first, so that the driver wakes with nothing to read
            time.sleep(0.3)
            send(driver.pid, signal.SIGSTOP)
            time.sleep(3)
            send(driver.pid, signal.SIGCONT)
            time.sleep(0.7)
            send(worker, signal.SIGCONT)
        assert driver.wait() == 0, (tmp_path / OUTPUT).read_text()
    assert "no report for" not in (tmp_path / OUTPUT).read_text()
    assert losses(RunStore(tmp_path / "tiny"), whole) == Losses()
