"""Ranks that train together as one worker: what the driver sees of them, and how they end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, StepRecord
from hpstudy.running.bench import bench
from hpstudy.running.cost import estimate
from hpstudy.running.executors import time_steps, wait_until_ready
from hpstudy.running.local import LocalExecutor, LocalWorker
from hpstudy.running.messages import Finished, Recorded, Report, Setup, StopDecision, Train
from hpstudy.running.micro_batch import FIRST_TOKENS
from hpstudy.running.replay import replay
from hpstudy.study import Study
from tests.helpers.running import AWAITED, Watch, any_alive, curves, run_at_start, run_here, workers_of
from tests.helpers.tiny import TINY_SETTING
from tests.helpers.training import HPARAMS, SPEC, run, timeless

TWO = replace(SPEC, processes=2)
RUN = run(replace(HPARAMS, micro_batch=4))
LONG = replace(RUN, tokens=10**9)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LocalWorker]]:
    """Starts a worker of two ranks, and ends those that a test leaves."""
    workers = list[LocalWorker]()

    def begin(spec=TWO) -> LocalWorker:
        setup = Setup(spec=spec, device="cpu", base=tmp_path)
        workers.append(LocalWorker(setup, tmp_path / f"worker-{len(workers)}.log"))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.last_words()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[StepRecord]:
    """The records of RUN, of a worker that trains nothing else."""
    folder = tmp_path_factory.mktemp("expected")
    worker = LocalWorker(Setup(spec=TWO, device="cpu", base=folder), folder / "worker.log")
    wait_until_ready(worker)
    records, _ = reports(worker, Train(run=RUN, awaits_decision=False))
    worker.last_words()
    return records


def processes(worker: LocalWorker) -> list[int]:
    """Pids of the ranks of a worker, from rank 0 on."""
    (first,) = [pid for pid in workers_of(os.getpid()) if pid == worker._process.pid]
    return [first, *sorted(workers_of(first))]


def reports(worker: LocalWorker, of: Train) -> tuple[list[StepRecord], Report | None]:
    """The records of a run, without times, and the report that follows the last."""
    worker.send(of)
    records = list[StepRecord]()
    while isinstance(report := worker.receive(), Recorded):
        records.append(timeless(report.record))
    return records, report


def all_end(pids: list[int]) -> bool:
    """Whether processes end within some seconds."""
    deadline = time.monotonic() + 10
    while any_alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any_alive(pids)


def test_a_worker_of_two_ranks_trains_one_run_after_another_and_leaves_no_process(start, expected):
    worker = start()
    assert wait_until_ready(worker).environment["ranks"] == 2
    pids = processes(worker)
    assert len(pids) == 2
    assert reports(worker, Train(run=RUN, awaits_decision=False)) == (
        expected,
        Finished(outcome=Outcome.COMPLETE, message=""),
    )
    timed = time_steps(worker, RUN.hparams, steps=3, evaluate=True)
    assert (len(timed.step_seconds), timed.message) == (3, "")
    assert reports(worker, Train(run=RUN, awaits_decision=False))[0] == expected
    assert "(exit code 0;" in worker.last_words().cause
    assert all_end(pids)


def test_a_run_that_is_pruned_ends_on_all_ranks_at_the_same_step(start, expected):
    worker = start()
    wait_until_ready(worker)
    worker.send(Train(run=RUN, awaits_decision=True))
    for decision in (False, True):
        records = [worker.receive() for _ in range(5)]
        assert all(isinstance(report, Recorded) for report in records)
        worker.send(StopDecision(stop=decision))
    assert worker.receive() == Finished(outcome=Outcome.PRUNED, message="")
    assert reports(worker, Train(run=RUN, awaits_decision=False))[0] == expected


def test_a_run_that_diverges_ends_on_all_ranks_at_the_same_step(start, expected):
    worker, wild = start(), replace(RUN.hparams, lr=1e30, clip_mode="none", warmup_fraction=0.0)
    wait_until_ready(worker)
    records, report = reports(worker, Train(run=replace(RUN, hparams=wild), awaits_decision=False))
    assert len(records) < 20
    assert report == Finished(outcome=Outcome.DIVERGED, message="")
    assert reports(worker, Train(run=RUN, awaits_decision=False))[0] == expected


# for run_at_start: what a rank does when it trains with more than `MOST` sequences in one pass
FAULTY = """
from hpstudy.training.trainer import Trainer

backward = Trainer._backward


def faulty(self, inputs_BT, *args):
    if self.ranks.rank == RANK and len(inputs_BT) > MOST:
        raise FAULT
    return backward(self, inputs_BT, *args)


Trainer._backward = faulty
"""


def faulty(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, *, rank: int | str = 1, most: int = 0) -> None:
    """Gives every worker started from now on a rank that fails."""
    code = FAULTY.replace("RANK", str(rank)).replace("MOST", str(most)).replace("FAULT", fault)
    run_at_start(folder / "site", code, monkeypatch)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "outcome", "last"),
    [
        ("MemoryError('no room')", Outcome.OUT_OF_MEMORY, "MemoryError: no room"),
        ("ValueError('it broke')", Outcome.FAILED, "ValueError: it broke"),
    ],
    ids=["memory", "bug"],
)
def test_a_rank_that_fails_ends_the_run_with_its_own_error_and_then_the_worker(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, outcome: Outcome, last: str, rank: int
):
    faulty(tmp_path, monkeypatch, error, rank=rank)
    worker = start()
    wait_until_ready(worker)
    pids = processes(worker)
    records, report = reports(worker, Train(run=RUN, awaits_decision=False))
    assert isinstance(report, Finished)
    assert (records, report.outcome, report.last) == ([], outcome, True)
    assert report.message.endswith(last)
    assert worker.receive() is None
    assert f"(exit code {1 - (rank == 0)};" in worker.last_words().cause
    assert all_end(pids)


def test_a_rank_that_fails_in_timed_steps_is_the_reason_that_they_fail(start, tmp_path: Path, monkeypatch):
    faulty(tmp_path, monkeypatch, "MemoryError")
    worker = start()
    wait_until_ready(worker)
    timed = time_steps(worker, RUN.hparams)
    assert (timed.message, timed.last) == ("out of memory", True)
    assert worker.receive() is None


def test_ranks_that_all_fail_report_it_once(start, tmp_path: Path, monkeypatch):
    faulty(tmp_path, monkeypatch, "MemoryError", rank="self.ranks.rank")
    worker = start()
    wait_until_ready(worker)
    assert time_steps(worker, RUN.hparams).last
    assert worker.receive() is None


def test_ranks_that_cannot_join_say_why(start, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    worker = start()
    with pytest.raises(MachineError, match=r"rank \d of 2 cannot join the others by GLOO_SOCKET_IFNAME=ib0: .*; unset"):
        wait_until_ready(worker)
    assert worker.receive() is None


@pytest.mark.parametrize("count", [2, 4])
def test_a_rank_that_is_killed_ends_the_worker_in_the_same_way_and_is_named_last_in_its_log(start, count: int):
    worker = start(replace(SPEC, processes=count))
    wait_until_ready(worker)
    pids = processes(worker)
    worker.send(Train(run=replace(LONG, hparams=replace(HPARAMS, micro_batch=2)), awaits_decision=False))
    assert isinstance(worker.receive(), Recorded)
    os.kill(pids[1], signal.SIGKILL)
    while worker.receive() is not None:
        pass
    ending = worker.last_words()
    assert "(exit code -9;" in ending.cause
    assert re.fullmatch(r"rank \d died \(exit code -9\)", ending.last_line)
    assert all_end(pids)


def test_a_rank_that_hangs_ends_with_the_worker(start):
    worker = start()
    wait_until_ready(worker)
    pids = processes(worker)
    worker.send(Train(run=LONG, awaits_decision=False))
    assert isinstance(worker.receive(), Recorded)
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(0.2)
    worker.kill()
    assert all_end(pids[1:])


def test_ranks_that_cannot_be_built_are_the_users_error(start):
    worker = start(replace(TWO, corpus="text:absent.txt"))
    with pytest.raises(UserError, match=r"absent\.txt"):
        wait_until_ready(worker)
    worker = start(replace(SPEC, gpus=2))
    with pytest.raises(UserError, match=r"^\[trainer\] gpus: a training takes 2 CUDA GPUs, but would run on the CPU; "):
        wait_until_ready(worker)


@pytest.fixture
def two_ranks(tiny) -> Callable[..., Study]:
    """The tiny study with two processes a training, and with `more` in [budget]."""
    trainer = {"evals = 4": "evals = 4\nprocesses = 2", "micro_batch = 16": "micro_batch = 8"}
    return lambda more="": tiny(replace=trainer, more=more)


@pytest.mark.slow
def test_a_study_of_two_ranks_repeats_survives_a_killed_and_a_hung_rank_and_replays(two_ranks, tmp_path: Path):
    study = two_ranks(f"hang_seconds = 3\n{AWAITED}")
    whole = run_here(study, tmp_path / "whole")
    assert (whole.read_json("environment.json") or {})["ranks"] == 2
    assert replay(study, whole, "search-0001", "cpu", LocalExecutor(tmp_path)).first is None
    faults = {("search-0001", 10): signal.SIGKILL, ("search-0002", 10): signal.SIGSTOP}  # a decision is due then

    def strike(of, record) -> None:
        if (number := faults.pop((of.run_id, record.step), None)) is not None:
            (first,) = workers_of(os.getpid())
            os.kill(workers_of(first)[0], number)

    watch = Watch(strike)
    store = run_here(study, tmp_path / "faulty", watch=watch)
    assert faults == {}
    assert curves(store) == curves(whole)
    assert any("the worker died (exit code -9; see" in line for line in watch.lines)
    assert any(line.startswith("search-0002: no report for 3 s") for line in watch.lines)
    assert workers_of(os.getpid()) == []


def test_a_rank_without_memory_makes_the_study_try_smaller_micro_batches(two_ranks, tmp_path: Path, monkeypatch):
    faulty(tmp_path, monkeypatch, "MemoryError", most=4)
    watch = Watch()
    store = run_here(two_ranks(), tmp_path / "runs", watch=watch, trials=1)
    (view,) = store.runs()
    assert view.result is not None
    assert (view.result.outcome, next(view.records()).micro_batch) == (Outcome.COMPLETE, 4)
    assert "search-0000: out of memory at micro_batch 8; tried again at 4" in watch.lines
    assert not any("died" in line for line in watch.lines)


def test_an_automatic_micro_batch_divides_the_batch_of_a_rank(tiny, tmp_path: Path):
    study = tiny(replace={"evals = 4": "evals = 4\nprocesses = 2", "micro_batch = 16": 'micro_batch = "auto"'})
    store = run_here(study, tmp_path, trials=1)
    assert store.read_json("calibration.json") == {"micro_batch": 8}


def test_an_automatic_micro_batch_is_found_below_one_that_fails(tiny, tmp_path: Path, monkeypatch):
    faulty(tmp_path, monkeypatch, "MemoryError", most=64)
    monkeypatch.setitem(FIRST_TOKENS, "cpu", 2048)  # 128 sequences, which is the whole batch of a rank
    large = {
        "evals = 4": "evals = 4\nprocesses = 2",
        "micro_batch = 16": 'micro_batch = "auto"',
        "batch_tokens = 256": "batch_tokens = 4096",
        "tokens = 5120": "tokens = 20_480",
    }
    store = run_here(tiny(replace=large), tmp_path / "runs", trials=1)
    assert store.read_json("calibration.json") == {"micro_batch": 64}


def test_a_micro_batch_that_fails_leaves_the_others_to_be_timed(tiny, tmp_path: Path, monkeypatch):
    faulty(tmp_path, monkeypatch, "MemoryError", most=4)
    searched = {
        "evals = 4": "evals = 4\nprocesses = 2",
        "micro_batch = 16\n": "",
        "[search]": "[search]\nmicro_batch = { choices = [8, 4] }",
    }
    study = tiny(replace=searched)
    cost = estimate(study, "cpu", [1.0], LocalExecutor(tmp_path), lambda _: None)
    assert {size: timed.message for size, timed in cost.timed.items()} == {8: "out of memory", 4: ""}


def test_a_benchmark_counts_the_steps_and_the_products_of_all_ranks(tmp_path: Path):
    result = bench(
        TINY_SETTING,
        device="cpu",
        threads=1,
        processes=2,
        rounds=2,
        turn_seconds=0.02,
        executor=LocalExecutor(tmp_path),
    )
    assert len(result.figures.steps_per_second) == 2
    assert result.figures.repeats is True
    assert 0 < result.mfu < 1
