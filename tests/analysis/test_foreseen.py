"""What is said of foresight: its errors, its audit, its savings and the forecasts of unfinished trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import hpstudy
from hpstudy.analysis.foreseen import foreseen, running_forecasts, savings, schedule_blind, stopped_forecasts
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Outcome
from tests.helpers.gallery import GALLERY
from tests.helpers.made_up import train


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A study that foresight stopped trials of."""
    runs = tmp_path_factory.mktemp("runs")
    train("foresight", GALLERY["foresight"], runs)
    return hpstudy.load("foresight", runs)


def test_a_power_law_is_extrapolated_to_its_value() -> None:
    losses = {index: 3.0 + 2.0 * index**-0.7 for index in range(1, 7)}
    assert schedule_blind(losses, 20) == pytest.approx(3.0 + 2.0 * 20**-0.7, abs=1e-6)


def test_forecasts_come_nearer_than_both_comparisons(stopped: StudyResults) -> None:
    errors = foreseen(stopped).errors
    assert [each.share for each in errors] == [0.2, 0.3, 0.5, 0.7]
    assert all(each.forecast < each.blind and each.forecast < each.current for each in errors)
    assert all(each.held >= 0.8 * each.num_trials > 0 for each in errors)


def test_audited_trials_are_those_that_would_have_been_stopped_with_what_they_reached(stopped: StudyResults) -> None:
    audited = foreseen(stopped).audited
    assert audited
    losses = stopped.trials.set_index("run_id")["val_loss"]
    for each in audited:
        assert each.run_id[-1] == "9"  # one number in ten
        assert each.loss == losses[each.run_id]
        assert each.held == (each.forecast.low <= each.loss <= each.forecast.high)
        assert not each.is_best


def test_savings_are_the_tokens_that_stopped_trials_did_not_train_on(stopped: StudyResults) -> None:
    saved, trials = savings(stopped), stopped.trials[stopped.trials["phase"] == "search"]
    pruned = trials[trials["outcome"] == Outcome.PRUNED]
    assert saved.stopped == len(pruned) > 0
    assert saved.ended == len(trials) == 40
    assert saved.tokens == 300_000 * len(pruned) - pruned["tokens"].sum()
    assert saved.share == saved.tokens / (40 * 300_000)


def test_an_unfinished_trial_has_a_forecast_once_five_have_ended(tmp_path: Path) -> None:
    train("late", replace(GALLERY["foresight"], stopped="search-0012"), tmp_path)
    results = hpstudy.load("late", tmp_path)
    found = running_forecasts(results)
    assert list(found) == ["search-0012"]
    low, high = results.ranked()["val_loss"].iloc[[0, -1]]
    assert low - 0.5 < found["search-0012"].low < found["search-0012"].loss < found["search-0012"].high < high + 0.5
    train("early", replace(GALLERY["foresight"], stopped="search-0003"), tmp_path)
    assert running_forecasts(hpstudy.load("early", tmp_path)) == {}


def test_a_study_without_foresight_has_none_of_it(tmp_path: Path) -> None:
    train("pruned", GALLERY["pruned"], tmp_path)
    results = hpstudy.load("pruned", tmp_path)
    assert foreseen(results) is None
    assert savings(results) is None
    assert running_forecasts(results) == {}


def test_every_stopped_trial_has_a_forecast_below_the_loss_at_which_it_stopped(stopped: StudyResults) -> None:
    trials = stopped.trials[stopped.trials["outcome"] == Outcome.PRUNED].set_index("run_id")
    found = stopped_forecasts(stopped)
    assert found.keys() == set(trials.index)
    assert all(forecast.loss < trials.loc[run, "val_loss"] for run, forecast in found.items())
