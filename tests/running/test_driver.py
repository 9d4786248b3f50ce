"""Whole studies with real workers, journals and stores: ended, interrupted, killed, refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.errors import UserError
from hpstudy.records import Outcome, Run, RunResult, StepRecord
from hpstudy.running.driver import Interrupted, Options, StopRequest, run_study
from hpstudy.search import Search
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


class Watch:
    """A progress view that remembers, and may act on a step."""

    def __init__(self, on_step: Callable[[Run, StepRecord], None] = lambda *_: None) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.said: list[str] = []
        self._on_step = on_step

    def phase(self, name: str, num_runs: int, finished: Sequence[tuple[Run, RunResult]]) -> None:
        self.finished += [run.run_id for run, _ in finished]

    def start(self, run: Run) -> None:
        self.started.append(run.run_id)

    def step(self, run: Run, record: StepRecord) -> None:
        self._on_step(run, record)

    def finish(self, run: Run, result: RunResult) -> None:
        self.finished.append(run.run_id)

    def say(self, line: str) -> None:
        self.said.append(line)


def go(
    study: Study,
    runs: Path,
    *,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    wandb: Any = "disabled",
    device: str = "cpu",
    trials: int | None = None,
    workers: int = 1,
) -> RunStore:
    options = Options(runs=runs, device=device, wandb=wandb, trials=trials, workers=workers)
    return run_study(study, options, watch or Watch(), stop or StopRequest())


def curves(store: RunStore) -> dict[str, list[StepRecord]]:
    return {view.run_id: [replace(r, **TIMES) for r in view.records()] for view in store.runs()}


def trials(study: Study, store: RunStore) -> list[Any]:
    return Search(study, store.root / "optuna.journal", read_only=True).trials()


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What the uninterrupted tiny study gave, filled by the first test that runs it."""
    return {}


@pytest.fixture
def uninterrupted(tiny, tmp_path: Path, reference: dict[str, Any]) -> tuple[list[Any], dict[str, list[StepRecord]]]:
    if not reference:
        study = tiny()
        store = go(study, tmp_path / "reference")
        reference["trials"], reference["curves"] = trials(study, store), curves(store)
    return reference["trials"], reference["curves"]


def test_a_study_tells_every_trial_and_writes_every_step(tiny, uninterrupted):
    study = tiny()
    told, steps = uninterrupted
    assert [(t.number, t.state) for t in told] == [(n, "complete") for n in range(5)]
    assert list(steps) == [f"search-{n:04d}" for n in range(5)]
    assert all([r.step for r in records] == list(range(1, 21)) for records in steps.values())
    assert told[0].values == pytest.approx(study.baseline_proposal())
    assert all(t.objectives == (steps[f"search-{t.number:04d}"][-1].val_loss,) for t in told)


def test_a_study_that_is_run_again_trains_nothing(tiny, tmp_path: Path):
    study = tiny()
    first = curves(go(study, tmp_path))
    watch = Watch()
    assert curves(go(study, tmp_path, watch=watch)) == first
    assert watch.started == []
    assert watch.finished == list(first)


def test_more_trials_extend_a_study_as_if_it_had_been_longer(tiny, tmp_path: Path, uninterrupted):
    short = tiny(replace={"trials = 5": "trials = 3"})
    go(short, tmp_path)
    store = go(short, tmp_path, trials=5)
    assert (trials(short, store), curves(store)) == uninterrupted


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_neither_trials_nor_curves(tiny, tmp_path: Path, workers: int):
    ahead = {"parallel = 2": "parallel = 4"}
    alone, together = (go(tiny(replace=ahead), tmp_path / str(n), workers=n) for n in (1, workers))
    assert len(list(together.root.glob("worker-*.log"))) == workers
    assert trials(tiny(replace=ahead), together) == trials(tiny(replace=ahead), alone)
    assert curves(together) == curves(alone)


def test_a_study_that_measures_speed_has_one_worker_and_says_so(tiny, tmp_path: Path):
    study = tiny(replace={"trials = 5": "trials = 2"}, more='[objective]\nmetric = "train/tok_per_sec"')
    watch = Watch()
    store = go(study, tmp_path, watch=watch, workers=2)
    assert len(list(store.root.glob("worker-*.log"))) == 1
    assert any("one worker" in line for line in watch.said)


@pytest.mark.parametrize(("trial", "step"), [(0, 1), (3, 7)])
def test_a_stopped_study_resumes_to_the_same_trials_and_curves(tiny, tmp_path, uninterrupted, trial, step):
    study, stop = tiny(), StopRequest()

    def ask(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.trial, record.step) == (trial, step)

    with pytest.raises(Interrupted):
        go(study, tmp_path, watch=Watch(ask), stop=stop)
    store = go(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_worker_that_is_killed_is_replaced_and_its_run_begins_again(tiny, tmp_path: Path, uninterrupted):
    study = tiny()
    killed: list[int] = []

    def kill(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (2, 5) and not killed:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    watch = Watch(kill)
    store = go(study, tmp_path, watch=watch)
    assert len(killed) == 1
    assert watch.started.count("search-0002") == 2
    assert any("exit code -9" in line for line in watch.said)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_run_whose_worker_always_dies_fails_and_the_study_goes_on(tiny, tmp_path: Path):
    study = tiny(replace={"trials = 5": "trials = 3"})

    def kill(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (1, 3):
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    store = go(study, tmp_path, watch=Watch(kill))
    assert [t.state for t in trials(study, store)] == ["complete", "failed", "complete"]
    result = store.result("search-0001")
    assert result.outcome is Outcome.FAILED
    assert "3 times in a row" in result.message


def workers_of(driver: int) -> list[int]:
    """Pids of the worker processes of a driver, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == driver and b"worker_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
        except (OSError, ValueError):
            continue
    return found


DRIVER = "import sys; from hpstudy.cli import main; sys.argv = ['hpstudy', *sys.argv[1:]]; main()"


def start_cli(path: Path, runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, "run", str(path), "--runs", str(runs), "--wandb", "disabled"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(runs: Path, run_id: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = runs / "tiny" / run_id / "steps.jsonl"
        if steps.exists() and steps.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{run_id} did not begin")


def test_a_driver_that_is_killed_leaves_no_worker_and_resumes_to_the_same(tiny_file, tiny, tmp_path, uninterrupted):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(), runs)
    wait_for_step(runs, "search-0001", process)
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    study = tiny()
    store = go(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_ctrl_c_once_ends_cleanly_and_says_how_to_resume(tiny_file, tiny, tmp_path, uninterrupted):
    runs, path = tmp_path / "runs", tiny_file()
    process = start_cli(path, runs)
    wait_for_step(runs, "search-0001", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"hpstudy run {path} --runs {runs}" in stderr
    assert "Traceback" not in stderr
    study = tiny()
    store = go(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_divergence_ends_a_run_early_and_is_told_as_a_uniform_guess(tiny, tmp_path: Path):
    hopeless = {"lr = { low = 1e-4, high = 3e-2": "lr = { low = 1e-4, high = 1e7", "trials = 5": "trials = 12"}
    study = tiny(replace=hopeless)
    store = go(study, tmp_path)
    results = {view.header.run.trial: view.result for view in store.runs()}
    diverged = [n for n, result in results.items() if result.outcome is Outcome.DIVERGED]
    assert diverged
    told = trials(study, store)
    assert all(told[n].state == "complete" and told[n].objectives == (math.log(256),) for n in diverged)
    assert all(results[n].steps < 20 for n in diverged)


def test_a_pruned_run_has_no_step_past_the_evaluation_it_was_judged_at(tiny, tmp_path: Path):
    pruner = 'pruner = { name = "median", startup = 1, from_fraction = 0.25 }'
    study = tiny(replace={"trials = 5": "trials = 8"}, more=pruner)
    store = go(study, tmp_path)
    pruned = [view for view in store.runs() if view.result.outcome is Outcome.PRUNED]
    assert pruned
    for view in pruned:
        *_, last = view.records()
        assert last.evaluated
        assert last.step < 20
    assert {t.number for t in trials(study, store) if t.state == "pruned"} == {v.header.run.trial for v in pruned}


def test_a_baseline_outside_the_space_runs_as_a_phase_of_its_own(tiny, tmp_path: Path):
    study = tiny(replace={"low = 1e-4": "low = 1e-3", "trials = 5": "trials = 2"})
    store = go(study, tmp_path)
    assert [view.run_id for view in store.runs()] == ["search-0000", "search-0001", "baseline-s0"]
    assert store.header("baseline-s0").run.hparams.lr == 6e-4


def test_two_objectives_tell_loss_and_speed(tiny, tmp_path: Path):
    study = tiny(replace={"trials = 5": "trials = 2"}, more='[objective]\nmetric = ["val/loss", "train/tok_per_sec"]')
    store = go(study, tmp_path)
    for trial in trials(study, store):
        result = store.result(f"search-{trial.number:04d}")
        assert trial.objectives == (result.val_loss, result.tok_per_sec)


def test_a_budget_in_seconds_becomes_tokens_before_the_first_step_and_stays(tiny, tmp_path: Path):
    study = tiny(replace={"tokens = 5120": "seconds = 0.2", "trials = 5": "trials = 2"})
    store = go(study, tmp_path)
    budgets = {view.header.run.tokens for view in store.runs()}
    assert len(budgets) == 1
    assert budgets.pop() % 256 == 0
    (speed,) = store.read_json("calibration.json").values()
    assert [view.result.tokens for view in store.runs()] == [view.header.run.tokens for view in store.runs()]
    again = go(study, tmp_path, trials=3)
    assert set(again.read_json("calibration.json").values()) == {speed}
    assert len({view.header.run.tokens for view in again.runs()}) == 1


def test_an_edited_study_is_refused_and_names_the_key(tiny, tmp_path: Path):
    go(tiny(replace={"trials = 5": "trials = 1"}), tmp_path)
    with pytest.raises(UserError, match=r"batch_tokens.*256.*512"):
        go(tiny(replace={"trials = 5": "trials = 1", "batch_tokens = 256": "batch_tokens = 512"}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "cuda:0"), ("precision", "bf16"), ("threads", 7), ("torch", "1.0"), ("corpus_digest", "x")],
)
def test_another_environment_is_refused_and_named(tiny, tmp_path: Path, key: str, value: object):
    study = tiny(replace={"trials = 5": "trials = 1"})
    store = go(study, tmp_path)
    environment = store.read_json("environment.json")
    store.write_json("environment.json", {**environment, key: value})
    with pytest.raises(UserError, match=rf"{key} was {value}, is"):
        go(study, tmp_path)


def test_cuda_without_a_gpu_is_the_users_error(tiny, tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="no CUDA GPU was found"):
        go(tiny(), tmp_path, device="cuda")


def test_environment_says_what_the_numbers_depend_on(tiny, tmp_path: Path):
    store = go(tiny(replace={"trials = 5": "trials = 1"}), tmp_path)
    environment = json.loads((store.root / "environment.json").read_text())
    assert environment.keys() >= {"device", "precision", "threads", "torch", "python", "corpus_digest", "packages"}
    assert environment["precision"] == "fp32"
