"""Whole studies with real workers, journals and stores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hpstudy.errors import UserError
from hpstudy.records import Outcome
from hpstudy.search.rule_trials import rule_trials
from hpstudy.study import study_sha256
from tests.helpers.running import Watch, curves, run_here, trials

ONE = {"trials = 5": "trials = 1"}
TWO = {"trials = 5": "trials = 2"}


def test_a_study_tells_every_trial_and_writes_every_step(tiny, uninterrupted):
    study = tiny()
    found, steps = uninterrupted
    assert [(t.number, t.state) for t in found] == [(n, "complete") for n in range(5)]
    assert list(steps) == [f"search-{n:04d}" for n in range(5)]
    assert all([r.step for r in records] == list(range(1, 21)) for records in steps.values())
    assert found[0].values == pytest.approx(study.baseline_proposal())
    assert all(t.objectives == (steps[f"search-{t.number:04d}"][-1].val_loss,) for t in found)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_neither_trials_nor_curves(tiny, tmp_path: Path, workers: int):
    study = tiny(replace={"parallel = 2": "parallel = 4"})
    alone, together = (run_here(study, tmp_path / str(n), workers=n) for n in (1, workers))
    assert len(list(together.root.glob("worker-*.log"))) == workers
    assert trials(study, together) == trials(study, alone)
    assert curves(together) == curves(alone)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_change_what_rules_propose_nor_what_follows(tiny, tmp_path: Path, workers: int):
    study = tiny(replace={"format = 1": "format = 4", "parallel = 2": "parallel = 4", "trials = 5": "trials = 7"})
    alone, together = (run_here(study, tmp_path / str(n), workers=n) for n in (1, workers))
    found = trials(study, alone)
    assert found == trials(study, together)
    assert curves(alone) == curves(together)
    proposed = rule_trials(study)
    assert {number: proposed[number].rule for number in (1, 5)} == {1: "combined", 5: "step-law"}
    assert all(found[number].values == pytest.approx(proposed[number].values) for number in (1, 5))


@pytest.mark.slow
def test_the_number_of_workers_changes_no_trial_that_foresight_stops(tiny, tmp_path: Path):
    study = tiny(
        replace={"trials = 5": "trials = 18", "parallel = 2": "parallel = 4", "evals = 4": "evals = 10"},
        more='pruner = "foresight"',
    )
    one, two, four = (run_here(study, tmp_path / str(n), workers=n) for n in (1, 2, 4))
    assert trials(study, one) == trials(study, two) == trials(study, four)
    assert curves(one) == curves(two) == curves(four)
    assert "pruned" in {trial.state for trial in trials(study, one)}


def test_a_study_that_measures_speed_has_one_worker_and_says_so(tiny, tmp_path: Path):
    study, watch = tiny(replace=TWO, more='[objective]\nmetric = "train/tok_per_sec"'), Watch()
    store = run_here(study, tmp_path, watch=watch, workers=2)
    assert len(list(store.root.glob("worker-*.log"))) == 1
    assert "one worker: this study measures speed, and trainings side by side slow each other" in watch.lines


def test_divergence_ends_a_run_early_and_counts_as_a_uniform_guess(tiny, tmp_path: Path):
    hopeless = {"lr = { low = 1e-4, high = 3e-2": "lr = { low = 1e-4, high = 1e7", "trials = 5": "trials = 12"}
    study = tiny(replace=hopeless)
    store = run_here(study, tmp_path)
    results = {view.header.run.trial: view.result for view in store.runs()}
    diverged = [n for n, result in results.items() if result.outcome is Outcome.DIVERGED]
    assert diverged
    found = trials(study, store)
    assert all(found[n].state == "complete" and found[n].objectives == (math.log(256),) for n in diverged)
    assert all(results[n].steps < 20 for n in diverged)


def test_a_pruned_run_has_no_step_past_the_evaluation_that_pruned_it(tiny, tmp_path: Path):
    pruner = 'pruner = { name = "median", startup = 1, from_fraction = 0.25 }'
    study = tiny(replace={"trials = 5": "trials = 8"}, more=pruner)
    store = run_here(study, tmp_path)
    pruned = [view for view in store.runs() if view.result.outcome is Outcome.PRUNED]
    assert pruned
    for view in pruned:
        *_, last = view.records()
        assert last.evaluated
        assert last.step < 20
    assert {t.number for t in trials(study, store) if t.state == "pruned"} == {v.header.run.trial for v in pruned}


def test_a_run_that_awaits_a_decision_and_diverges_at_an_evaluation_harms_no_worker(tiny, tmp_path: Path):
    """Every step evaluates, so the worker must not take the decision on a diverged run for its next order."""
    study = tiny(
        replace={
            "evals = 4": "evals = 20",
            "low = 1e-4, high = 3e-2": "low = 1e-4, high = 1e7",
            "trials = 5": "trials = 8",
        },
        more='pruner = { name = "median", startup = 8 }',
    )
    watch = Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert Outcome.DIVERGED in {view.result.outcome for view in store.runs()}
    assert not any("died" in line for line in watch.lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_baseline_outside_the_space_runs_once_after_the_search_or_beside_its_end(tiny, tmp_path: Path, workers: int):
    study = tiny(replace={"low = 1e-4": "low = 1e-3", **TWO})
    store = run_here(study, tmp_path, workers=workers)
    assert [view.run_id for view in store.runs()] == ["search-0000", "search-0001", "baseline-s0"]
    assert store.header("baseline-s0").run.hparams.lr == 6e-4


def test_a_trial_has_loss_and_speed_if_both_are_objectives(tiny, tmp_path: Path):
    study = tiny(replace=TWO, more='[objective]\nmetric = ["val/loss", "train/tok_per_sec"]')
    store = run_here(study, tmp_path)
    for trial in trials(study, store):
        result = store.result(f"search-{trial.number:04d}")
        assert trial.objectives == (result.val_loss, result.tok_per_sec)


def test_a_budget_in_seconds_becomes_tokens_before_the_first_step_and_stays(tiny, tmp_path: Path):
    study = tiny(replace={"tokens = 5120": "seconds = 0.2", **TWO})
    store = run_here(study, tmp_path)
    budgets = {view.header.run.tokens for view in store.runs()}
    assert len(budgets) == 1
    assert budgets.pop() % 256 == 0
    (speed,) = store.read_json("calibration.json").values()
    assert [view.result.tokens for view in store.runs()] == [view.header.run.tokens for view in store.runs()]
    again = run_here(study, tmp_path, trials=3)
    assert set(again.read_json("calibration.json").values()) == {speed}
    assert len({view.header.run.tokens for view in again.runs()}) == 1


def test_an_edited_study_is_refused_with_the_key(tiny, tmp_path: Path):
    run_here(tiny(replace=ONE), tmp_path)
    with pytest.raises(UserError, match=r"batch_tokens.*256.*512"):
        run_here(tiny(replace={**ONE, "batch_tokens = 256": "batch_tokens = 512"}), tmp_path)


def test_frozen_values_that_were_edited_with_the_file_are_refused_by_their_hash(tiny, tmp_path: Path):
    store = run_here(tiny(replace=ONE), tmp_path)
    edited = tiny(replace={**ONE, "batch_tokens = 256": "batch_tokens = 512"})
    store.write_json("study.json", edited.resolved())
    hashed = store.read_json("environment.json")["study_sha256"]
    with pytest.raises(UserError) as refused:
        run_here(edited, tmp_path)
    assert str(refused.value) == (
        f"{store.root / 'study.json'}: was edited after the study began (its hash must be {hashed}); put back what was "
        "edited, or start again with another --runs folder"
    )


def test_more_trials_leave_the_hash_of_a_study_as_it_was(tiny, tmp_path: Path):
    store = run_here(tiny(replace=ONE), tmp_path)
    before = store.read_json("environment.json")
    run_here(tiny(replace=TWO), tmp_path)
    assert store.read_json("environment.json") == before
    assert store.read_json("study.json")["budget.trials"] == 2
    assert study_sha256(store.read_json("study.json")) == before["study_sha256"]


def test_another_environment_is_refused_with_each_difference(tiny, tmp_path: Path):
    study = tiny(replace=ONE)
    store = run_here(study, tmp_path)
    was = {"precision": "bf16", "threads": 7, "torch": "1.0", "corpus_digest": "x", "device": "cuda"}
    store.write_json("environment.json", {**store.read_json("environment.json"), **was})
    with pytest.raises(UserError) as refused:
        run_here(study, tmp_path, trials=2)
    assert all(f"{key} was {value}, is" in str(refused.value) for key, value in was.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_the_users_error(tiny, tmp_path: Path):
    with pytest.raises(UserError, match="no CUDA GPU was found"):
        run_here(tiny(), tmp_path, device="cuda")


def test_environment_json_holds_what_the_numbers_depend_on(tiny, tmp_path: Path):
    store = run_here(tiny(replace=ONE), tmp_path)
    environment = json.loads((store.root / "environment.json").read_text())
    assert environment.keys() >= {"device", "precision", "threads", "torch", "python", "corpus_digest", "packages"}
    assert environment["precision"] == "fp32"


def test_a_refused_study_leaves_no_files(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match="WANDB_MODE"):
        run_here(tiny(), tmp_path / "runs", wandb="auto")
    assert list((tmp_path / "runs").iterdir()) == []
