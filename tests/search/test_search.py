"""A study's trials: when the next one is asked, how each one ends, and what the run store must agree with."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from hpstudy.errors import MachineError
from hpstudy.records import Outcome, RunResult
from hpstudy.search import Search, objective_values
from hpstudy.study.schema import MetricName
from tests.helpers.search import LOSS, SPEED, VOCAB, drive, result, tell_all, toy_result, toy_study

# Asking and telling


def test_a_trial_is_asked_only_when_the_one_parallel_before_it_has_ended(tmp_path: Path):
    search = Search(toy_study(parallel=3, trials=5), tmp_path / "journal")
    assert [search.ask().number for _ in range(3)] == [0, 1, 2]
    assert search.ask() is None
    search.tell(0, result())
    assert search.ask().number == 3
    assert search.ask() is None
    search.tell(1, result())
    search.tell(2, result())
    assert search.ask().number == 4
    assert search.ask() is None  # the budget is spent
    assert [proposal.number for proposal in search.pending()] == [3, 4]
    assert search.num_asked == search.num_trials == 5


def test_every_trial_ends_once_and_in_order_of_number(tmp_path: Path):
    search = Search(toy_study(parallel=3), tmp_path / "journal")
    for _ in range(3):
        search.ask()
    with pytest.raises(AssertionError, match="trial 0 must be told next, but got 1"):
        search.tell(1, result())
    search.tell(0, result())
    with pytest.raises(AssertionError, match="trial 1 must be told next, but got 0"):
        search.tell(0, result())


def test_a_pending_trial_keeps_its_number_and_its_values(tmp_path: Path):
    search = Search(toy_study(parallel=2), tmp_path / "journal")
    asked = [search.ask(), search.ask()]
    assert Search(toy_study(parallel=2), tmp_path / "journal").pending() == asked


def test_more_trials_extend_a_finished_search_as_if_all_had_been_planned(tmp_path: Path):
    study = toy_study(trials=6)
    drive(study, tmp_path / "journal", Random(0))
    extended = Search(study, tmp_path / "journal", trials=8)
    while (proposal := extended.ask()) is not None:
        extended.tell(proposal.number, toy_result(proposal.values))
    assert extended.trials() == drive(toy_study(trials=8), tmp_path / "planned", Random(0))


# How a trial ends


@pytest.mark.parametrize(
    ("end", "values"),
    [
        (result(), (3.0,)),
        (result(val_loss=40.0), (math.log(VOCAB),)),
        (result(Outcome.DIVERGED, math.nan), (math.log(VOCAB),)),
        (result(Outcome.DIVERGED, 5.0), (math.log(VOCAB),)),  # it diverged after its last evaluation
        (result(Outcome.DIVERGED, None, None), (math.log(VOCAB),)),
        (result(Outcome.PRUNED), None),
        (result(Outcome.FAILED), None),
        (result(Outcome.OUT_OF_MEMORY, None, None), (math.log(VOCAB),)),
        (result(Outcome.OUT_OF_MEMORY, 5.0), (math.log(VOCAB),)),
    ],
)
def test_a_diverged_run_counts_as_a_uniform_guess_and_no_loss_counts_as_worse(
    end: RunResult, values: tuple[float, ...] | None
):
    assert objective_values(toy_study(), end) == values


def test_two_objectives_have_the_order_of_the_study():
    assert objective_values(toy_study(metrics=(SPEED, LOSS)), result()) == (1000.0, 3.0)
    assert objective_values(toy_study(metrics=(LOSS, SPEED)), result(tok_per_sec=None)) is None
    out_of_memory = result(Outcome.OUT_OF_MEMORY)  # after some steps
    assert objective_values(toy_study(metrics=(SPEED, LOSS)), out_of_memory) == (0.0, math.log(VOCAB))


def test_the_outcome_of_a_run_decides_the_state_of_its_trial(tmp_path: Path):
    search = Search(toy_study(), tmp_path / "journal")
    for outcome in Outcome:
        search.tell(search.ask().number, result(outcome))
    assert {outcome: trial.state for outcome, trial in zip(Outcome, search.trials(), strict=True)} == {
        Outcome.COMPLETE: "complete",
        Outcome.PRUNED: "pruned",
        Outcome.DIVERGED: "complete",
        Outcome.OUT_OF_MEMORY: "infeasible",
        Outcome.FAILED: "failed",
    }
    assert [trial.objectives for trial in search.trials()] == [(3.0,), None, (math.log(VOCAB),), None, None]


@pytest.mark.parametrize("metrics", [(LOSS,), (SPEED,), (LOSS, SPEED)], ids=["loss", "speed", "both"])
def test_a_trial_that_ran_out_of_memory_has_no_objectives_so_that_it_is_never_ranked(
    metrics: tuple[MetricName, ...], tmp_path: Path
):
    search = Search(toy_study("random", metrics=metrics), tmp_path / "journal")
    for end in (Outcome.OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
        search.tell(search.ask().number, result(end, None, 0.0))  # the values of all three are equal
    diverged = tuple(math.log(VOCAB) if metric == LOSS else 0.0 for metric in metrics)
    assert [(trial.state, trial.objectives) for trial in search.trials()] == [
        ("infeasible", None),
        ("complete", diverged),
        ("infeasible", None),
    ]


# Agreement with the run store


def test_a_trial_that_differs_from_its_run_is_named(tmp_path: Path):
    study, journal = toy_study(parallel=2), tmp_path / "journal"
    search = Search(study, journal)
    asked = [search.ask(), search.ask()]
    search.tell(0, result(val_loss=3.25))
    hparams = study.trial_hparams(asked[1].values, study.spec.tokens)
    search.check(1, hparams, None)
    with pytest.raises(
        MachineError,
        match=rf"^{journal}: trial 1: must agree with its run in the run store, but lr is .* in it and 0\.5 there; one "
        "of the two is damaged: restore it, or move the journal away and run the same command again: every trial is "
        r"proposed again and gets the result of its run$",
    ):
        search.check(1, replace(hparams, lr=0.5), None)
    baseline = study.baseline_hparams(study.spec.tokens)
    search.check(0, baseline, result(val_loss=3.25))
    search.check(0, baseline, None)  # its run will be trained again
    for other in (result(val_loss=3.5), result(Outcome.FAILED), result(Outcome.OUT_OF_MEMORY)):
        with pytest.raises(
            MachineError,
            match=r"trial 0: .* it ended as complete \[3\.25\] in it, which is not the run's result there",
        ):
            search.check(0, baseline, other)


@pytest.mark.parametrize("damaged", ["3.75", "8.25"])
def test_a_damaged_result_in_the_journal_is_named(damaged: str, tmp_path: Path):
    study, journal = toy_study(), tmp_path / "journal"
    tell_all(Search(study, journal), [3.25])
    baseline = study.baseline_hparams(study.spec.tokens)
    journal.write_bytes(journal.read_bytes().replace(b'"values":[3.25]', f'"values":[{damaged}]'.encode()))
    with pytest.raises(MachineError, match=rf"trial 0: .* it ended as complete \[{damaged}\] in it"):
        Search(study, journal).check(0, baseline, result(val_loss=3.25))


def test_a_result_that_other_code_may_have_trained_again_agrees_within_rounding(tmp_path: Path):
    study = toy_study()
    Search(study, tmp_path / "journal").ask()
    search = Search(study, tmp_path / "journal", exact=lambda: False)
    search.tell(0, result(val_loss=3.25))
    baseline = study.baseline_hparams(study.spec.tokens)
    search.check(0, baseline, result(val_loss=3.26))
    with pytest.raises(MachineError, match=r"it ended as complete \[3.25\] in it"):
        search.check(0, baseline, result(val_loss=3.75))
    with pytest.raises(MachineError, match=r"it ended as complete \[3.25\] in it"):
        Search(study, tmp_path / "journal").check(0, baseline, result(val_loss=3.26))


def test_a_trial_that_an_earlier_version_ended_as_failed_agrees_with_out_of_memory(tmp_path: Path):
    study = toy_study()
    search = Search(study, tmp_path / "journal")
    search.ask()
    search.tell(0, result(Outcome.FAILED, None))
    search.check(0, study.baseline_hparams(study.spec.tokens), result(Outcome.OUT_OF_MEMORY, None))


def test_importing_hpstudy_search_does_not_change_optunas_verbosity():
    code = "import optuna; before = optuna.logging.get_verbosity(); import hpstudy.search; "
    code += "assert optuna.logging.get_verbosity() == before == optuna.logging.INFO"
    subprocess.run([sys.executable, "-c", code], check=True)
