"""Whole studies with real workers, journals and stores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.records import Outcome
from hpstudy.study import question_sha256
from studies import Watch, curves, go, trials


def test_a_study_tells_every_trial_and_writes_every_step(tiny, uninterrupted):
    study = tiny()
    told, steps = uninterrupted
    assert [(t.number, t.state) for t in told] == [(n, "complete") for n in range(5)]
    assert list(steps) == [f"search-{n:04d}" for n in range(5)]
    assert all([r.step for r in records] == list(range(1, 21)) for records in steps.values())
    assert told[0].values == pytest.approx(study.baseline_proposal())
    assert all(t.objectives == (steps[f"search-{t.number:04d}"][-1].val_loss,) for t in told)


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


def test_frozen_values_that_were_edited_with_the_file_are_refused_by_their_hash(tiny, tmp_path: Path):
    one = {"trials = 5": "trials = 1"}
    store = go(tiny(replace=one), tmp_path)
    edited = tiny(replace={**one, "batch_tokens = 256": "batch_tokens = 512"})
    store.write_json("study.json", edited.resolved())
    with pytest.raises(UserError, match=r"study\.json: is not what the study asked when it began"):
        go(edited, tmp_path)


def test_more_trials_leave_the_hash_of_a_study_as_it_was(tiny, tmp_path: Path):
    store = go(tiny(replace={"trials = 5": "trials = 1"}), tmp_path)
    before = store.read_json("environment.json")
    go(tiny(replace={"trials = 5": "trials = 2"}), tmp_path)
    assert store.read_json("environment.json") == before
    assert store.read_json("study.json")["budget.trials"] == 2
    assert question_sha256(store.read_json("study.json")) == before["study_sha256"]


def test_another_environment_is_refused_and_named(tiny, tmp_path: Path):
    study = tiny(replace={"trials = 5": "trials = 1"})
    store = go(study, tmp_path)
    was = {"precision": "bf16", "threads": 7, "torch": "1.0", "corpus_digest": "x", "device": "cuda"}
    store.write_json("environment.json", {**store.read_json("environment.json"), **was})
    with pytest.raises(UserError) as refused:
        go(study, tmp_path)
    assert all(f"{key} was {value}, is" in str(refused.value) for key, value in was.items())


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


def test_a_judged_run_that_diverges_at_an_evaluation_harms_no_worker(tiny, tmp_path: Path):
    """Every step evaluates, so the word on a diverged run must not be taken for the next order."""
    study = tiny(
        replace={
            "evals = 4": "evals = 20",
            "low = 1e-4, high = 3e-2": "low = 1e-4, high = 1e7",
            "trials = 5": "trials = 8",
        },
        more='pruner = { name = "median", startup = 8 }',
    )
    watch = Watch()
    store = go(study, tmp_path, watch=watch)
    assert Outcome.DIVERGED in {view.result.outcome for view in store.runs()}
    assert not any("died" in line for line in watch.said)


def test_a_refused_study_leaves_nothing_and_may_be_edited(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match="WANDB_MODE"):
        go(tiny(), tmp_path / "runs", wandb="auto")
    assert list((tmp_path / "runs").iterdir()) == []
