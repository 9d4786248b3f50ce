"""Trials that train as one: which train together, how many, and what a study of packs keeps."""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.hparams import GPT3, HParams
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Options, StopRequest
from hpstudy.running.messages import Timed
from hpstudy.running.packing import best_pack, take_pack
from hpstudy.running.pool import WorkerPool
from hpstudy.running.replay import replay
from hpstudy.running.worker import Worker
from tests.helpers.running import (
    AWAITED,
    DEADLY,
    Watch,
    curves,
    interrupt,
    kill_workers,
    run_at_start,
    run_here,
    trials,
    workers_of,
)

RANDOM = {  # a sampler that does not depend on the rounding of results
    "parallel = 2": "parallel = 4",
    "trials = 5": "trials = 6",
    'sampler = { name = "tpe", startup = 2 }': 'sampler = "random"',
}
LOSS = 1e-5  # relative, in fp32


def waiting(*micro_batches: int) -> deque[Run]:
    return deque(
        Run(run_id=f"{n}", phase="search", trial=n, seed=0, tokens=1, hparams=replace(GPT3, micro_batch=size))
        for n, size in enumerate(micro_batches)
    )


def ids(runs: tuple[Run, ...]) -> str:
    return "".join(run.run_id for run in runs)


def test_a_pack_takes_runs_of_one_shape_in_their_order_and_leaves_the_others():
    queue = waiting(4, 8, 4, 8, 4)
    assert [ids(take_pack(queue, 2, 1)) for _ in range(3)] == ["02", "13", "4"]


def test_a_pack_takes_no_more_than_an_even_share():
    queue = waiting(4, 4, 4)
    assert [ids(take_pack(queue, 4, idle)) for idle in (2, 1)] == ["01", "2"]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 4.0}, (4, 2.5)),
        ({1: 1.0, 2: 1.9, 4: 3.7, 8: 7.5}, (1, 1.0)),  # less than a tenth faster
        ({1: 1.0, 2: 1.2, 4: None, 8: 0.1}, (2, 2 / 1.2)),  # 4 did not fit
        ({1: None}, (1, 1.0)),
    ],
)
def test_the_best_pack_is_the_one_with_the_most_tokens_per_second(seconds, best):
    assert best_pack(seconds.__getitem__, 8) == pytest.approx(best)


@pytest.mark.parametrize(
    ("pack", "timed", "workers", "lines"),
    [('"auto"', [1, 2], 2, []), ("4", [], 1, ["1 worker of 2: [budget] parallel is 4, 4 trials a worker"])],
)
def test_a_measured_pack_leaves_no_core_idle_and_a_stated_one_that_does_is_reported(
    tiny, tmp_path: Path, monkeypatch, pack: str, timed: list[int], workers: int, lines: list[str]
):
    start, sizes = WorkerPool.start, list[int]()

    def time_steps(*_: object, pack: int) -> Timed:
        sizes.append(pack)
        return Timed(step_seconds=(1.0,), eval_seconds=None, peak_gib=1.0, room_gib=2.0)

    monkeypatch.setattr(WorkerPool, "start", lambda pool: start(pool) | {"num_gpus": 0, "cores": 2})
    monkeypatch.setattr(Worker, "time_steps", time_steps)
    study, watch = tiny(replace=RANDOM | {"trials = 5": "trials = 2"}, more=f"pack = {pack}"), Watch()
    store = run_study(study, Options(runs=tmp_path, device="cpu", wandb="disabled"), watch, StopRequest())
    assert sizes == timed
    assert len(list(store.root.glob("worker-*.log"))) == workers
    assert [line for line in watch.lines if "worker" in line] == lines


def test_a_pack_size_that_kills_the_worker_is_not_used_and_the_study_runs(tiny, tmp_path: Path, monkeypatch):
    time_steps = Worker.time_steps

    def killing(worker: Worker, hparams: HParams, meanwhile: Callable[[], None], *, pack: int) -> Timed:
        if pack == 2:
            kill_workers()
        return time_steps(worker, hparams, meanwhile, pack=pack)

    monkeypatch.setattr(Worker, "time_steps", killing)
    monkeypatch.setattr("hpstudy.running.driver.trainings_at_once", lambda *_: 1)
    study, watch = tiny(replace=RANDOM | {"trials = 5": "trials = 2"}, more='pack = "auto"'), Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert store.read_json("calibration.json") == {"pack": 1}
    assert len(watch.finished) == 2


def close(packed: dict[str, list[StepRecord]], alone: dict[str, list[StepRecord]]) -> bool:
    losses = [[r.loss for records in every.values() for r in records] for every in (packed, alone)]
    return list(packed) == list(alone) and losses[0] == pytest.approx(losses[1], rel=LOSS)


def test_a_packed_study_has_the_proposals_and_losses_of_one_trial_at_a_time(tiny, tmp_path: Path):
    alone_study, study = tiny(replace=RANDOM), tiny(replace=RANDOM, more="pack = 2")
    alone = run_here(alone_study, tmp_path / "alone")
    packed = run_here(study, tmp_path / "packed", workers=2)
    assert [t.values for t in trials(study, packed)] == [t.values for t in trials(alone_study, alone)]
    assert close(curves(packed), curves(alone))
    assert curves(packed) != curves(alone)  # the last bits show that they trained as one


def test_the_number_of_workers_changes_neither_trials_nor_curves_of_packs(tiny, tmp_path: Path):
    study = tiny(replace={"parallel = 2": "parallel = 4", "trials = 5": "trials = 11"}, more="pack = 2")
    alone, together = (run_here(study, tmp_path / str(n), workers=n) for n in (1, 2))
    assert len(list(together.root.glob("worker-*.log"))) == 2
    assert trials(study, together) == trials(study, alone)
    assert curves(together) == curves(alone)


def test_a_trial_of_a_pack_is_pruned_alone(tiny, tmp_path: Path):
    pruner = 'pack = 4\npruner = { name = "median", startup = 1, from_fraction = 0.25 }'
    study = tiny(replace=RANDOM | {"trials = 5": "trials = 12"}, more=pruner)
    store = run_here(study, tmp_path)
    outcomes = {view.header.run.trial: view.result.outcome for view in store.runs()}
    assert set(outcomes.values()) == {Outcome.PRUNED, Outcome.COMPLETE}
    for view in store.runs():
        *_, last = view.records()
        assert last.evaluated
        assert (last.step == 20) == (view.result.outcome is Outcome.COMPLETE)


def test_a_packed_study_resumes_after_a_stop_and_after_a_dead_worker(tiny, tmp_path: Path):
    study = tiny(replace=RANDOM, more="pack = 4")
    expected = run_here(study, tmp_path / "expected")
    interrupt(study, tmp_path / "broken", "search-0002", 5)
    killed: list[int] = []

    def kill(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (1, 5) and not killed:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    watch = Watch(kill)
    store = run_here(study, tmp_path / "broken", watch=watch)
    assert len(killed) == 1
    assert any("they start again" in line for line in watch.lines)
    assert curves(store) == curves(expected)
    assert trials(study, store) == trials(study, expected)


def test_a_pack_whose_workers_die_continues_as_long_as_each_brings_new_steps(tiny, tmp_path: Path):
    study, deadly = tiny(replace=RANDOM, more=f"pack = 4\n{AWAITED}"), {5, 10, 15}

    def kill(run: Run, record: StepRecord) -> None:
        if run.trial == 1 and record.step in deadly:
            deadly.remove(record.step)
            kill_workers()

    watch = Watch(kill)
    store = run_here(study, tmp_path, watch=watch)
    assert watch.started.count("search-0001") == 4
    assert {view.result.outcome for view in store.runs()} == {Outcome.COMPLETE}


def test_a_run_that_kills_the_workers_of_its_pack_fails_alone(tiny, tmp_path: Path, monkeypatch):
    run_at_start(tmp_path / "site", DEADLY, monkeypatch)
    study, watch = tiny(replace=RANDOM | {"trials = 5": "trials = 3"}, more="pack = 2"), Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert watch.started.count("search-0001") == 6
    assert [t.state for t in trials(study, store)] == ["complete", "failed", "complete"]


def test_any_run_of_a_packed_study_is_replayed_within_a_tolerance(tiny, tmp_path: Path):
    outside = {"lr = { low = 1e-4": "lr = { low = 1e-3", "trials = 5": "trials = 1"}
    study = tiny(replace=outside, more="pack = 2")
    store = run_here(study, tmp_path)
    again = replay(study, store, "baseline-s0", "cpu")
    assert again.good
    assert again.changed == ("it may have been trained in a pack, and is trained alone now",)


CRAMPED = """
from hpstudy.training.pack import Pack

train = Pack.train


def cramped(self, runs, stopped):
    if len(runs) > 1:
        yield next(train(self, runs, stopped))
        raise MemoryError
    yield from train(self, runs, stopped)


Pack.train = cramped
"""


@pytest.mark.parametrize("micro_batch", ["", "micro_batch = { choices = [8, 16] }"])
def test_a_pack_that_does_not_fit_trains_one_at_a_time_at_the_same_micro_batch(
    tiny, tmp_path: Path, monkeypatch, micro_batch: str
):
    searched = {"micro_batch = 16\n\n[search]": f"\n[search]\n{micro_batch}"} if micro_batch else {}
    study, watch = tiny(replace=RANDOM | searched, more="pack = 4"), Watch()
    run_at_start(tmp_path / "site", CRAMPED, monkeypatch)
    store = run_here(study, tmp_path, watch=watch)
    (line,) = [line for line in watch.lines if "out of memory" in line]
    assert line.endswith(": out of memory as one; tried again one at a time")
    assert {view.result.outcome for view in store.runs()} == {Outcome.COMPLETE}
    assert {view.header.run.hparams.micro_batch for view in store.runs()} <= ({8, 16} if micro_batch else {16})


def test_an_automatic_pack_is_measured_once_and_kept_by_a_resumed_study(tiny, tmp_path: Path):
    study, watch = tiny(replace=RANDOM | {"trials = 5": "trials = 2"}, more='pack = "auto"'), Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert [line for line in watch.lines if line.startswith("pack: ")]
    assert json.loads((store.root / "calibration.json").read_text())["pack"] in (1, 2, 4)
    assert json.loads((store.root / "study.json").read_text())["budget.pack"] == "auto"
    again = Watch()
    run_here(study, tmp_path, watch=again, trials=3)
    assert not [line for line in again.lines if line.startswith("pack: ")]
    assert len(again.finished) == 3
