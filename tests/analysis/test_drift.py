"""A study that measures speed says how much the machine's own speed changed during its search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpstudy.analysis.drift import apart, drift
from hpstudy.analysis.overview import overview
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Outcome
from hpstudy.report.sections import _warnings
from hpstudy.report.terminal import _cautions, _drift
from hpstudy.study import Study
from tests.helpers.stores import BASELINE, SEEDS, Ends, ends, on_seeds, results_of, stored

Tiny, Make = Callable[..., Study], Callable[..., StudyResults]
BOTH = '["val/loss", "train/tok_per_sec"]'
SPEED = '"train/tok_per_sec"'
AFTER, FASTER = (1020.0, 1030.0, 1040.0, 1050.0, 1030.0), (1045.0, 1056.0, 1066.0, 1076.0, 1056.0)
ENDS: Ends = {"search-0000": 4.0, **ends({"search-0003": BASELINE})}


@pytest.fixture
def timed(tiny: Tiny, tmp_path: Path) -> Make:
    """A study by speed. Trial 0 trained at 1000 tokens/s, the baseline at AFTER on fresh seeds, the winner faster."""

    def make(
        ends: Ends = ENDS,
        *,
        metric: str = SPEED,
        seeds: Sequence[int] = SEEDS,
        winner: Sequence[float] = FASTER,
        changes: Mapping[str, str] | None = None,
    ) -> StudyResults:
        study = tiny(
            more=f"[objective]\nmetric = {metric}\n[confirm]\nseeds = {list(seeds)}\n", replace=dict(changes or {})
        )
        speed = {**on_seeds("baseline", AFTER, SEEDS), **on_seeds("confirm-0003", winner, SEEDS)}
        return results_of(study, stored(tmp_path, ends, speed=speed), tmp_path)

    return make


@pytest.mark.parametrize("metric", [SPEED, BOTH])
def test_drift_is_the_median_speed_of_the_baselines_fresh_runs_over_that_of_trial_0(timed: Make, metric: str) -> None:
    found = drift(timed(metric=metric))
    assert found is not None
    assert (found.ratio, found.runs, found.missing, found.winner) == (1.03, 5, "", "search-0003")
    assert found.lead == (pytest.approx(1.025, abs=1e-3) if metric == SPEED else None)  # by loss none is needed
    assert str(found) == "the baseline trained 3.0% faster after the search than at its start (5 runs against one)"
    assert str(replace(found, ratio=0.981, runs=1)).partition(" trained ")[2] == (
        "1.9% slower after the search than at its start (1 run against one)"
    )
    assert str(replace(found, ratio=1.0002)).startswith("the baseline trained as fast after the search as at its start")


def test_a_drift_larger_than_the_winners_lead_is_a_warning_wherever_the_speed_is_answered(timed: Make) -> None:
    results = timed()
    found = drift(results)
    assert found is not None
    assert found.warning == (
        "the baseline's speed changed by 3.0% during the search, more than the 2.5% between search-0003 and the "
        "baseline: the search may have passed over a faster trial"
    )
    assert found.warning in _warnings(results)
    assert "a drift larger than the lead" in _cautions(results)
    assert _drift(results, 200) == [f"    drift: {found}"]
    assert overview(results)["drift"] == {
        "ratio": 1.03, "runs": 5, "missing": "", "warning": found.warning,
    }  # fmt: skip


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_a_drift_smaller_than_the_difference_of_the_sides_is_none(timed: Make, factor: float) -> None:
    results = timed(winner=[speed * factor for speed in AFTER])
    assert getattr(drift(results), "ratio", None) == 1.03
    assert getattr(drift(results), "warning", None) == ""
    assert "a drift larger than the lead" not in _cautions(results)


NO_FRESH = {"search-0000": 4.0, "search-0003": 4.0}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"seeds": (), "ends": NO_FRESH}, "without fresh seeds the baseline does not train again after the search"),
        ({"ends": NO_FRESH}, "the baseline has not trained again after the search yet"),
        ({"ends": ENDS | {"search-0000": Outcome.FAILED}}, "the baseline's trial is not complete"),
        (
            {"changes": {"low = 1e-4": "low = 1e-3"}},
            "the baseline is no trial of the search, so it did not train at its start",
        ),
    ],
)
def test_a_drift_that_is_not_measured_says_why(timed: Make, made: dict[str, Any], why: str) -> None:
    results = timed(**made)
    found = drift(results)
    assert found is not None
    assert (found.ratio, str(found), found.warning) == (None, f"not measured, because {why}", "")
    assert found.sentence == f"Drift: not measured, because {why}."


def test_a_study_of_the_loss_alone_has_no_drift(timed: Make) -> None:
    results = timed(metric='"val/loss"')
    assert drift(results) is None
    assert (apart(results), overview(results)["drift"], _drift(results, 80)) == ([], None, [])


def test_a_candidate_whose_fresh_runs_began_after_the_baselines_last_is_named(timed: Make) -> None:
    later = results_with_start(timed(), "confirm-0003-s", "2026-11-24T12:00:00+00:00")
    assert apart(later) == ["search-0003"]
    assert any("search-0003 trained on fresh seeds after the baseline had" in line for line in _warnings(later))
    assert "sides that trained apart" in _cautions(later)


def test_sides_that_trained_in_turns_are_not_apart(timed: Make) -> None:
    assert apart(results_with_start(timed(), "baseline-s105", "2026-11-24T12:00:00+00:00")) == []


def results_with_start(results: StudyResults, runs: str, time: str) -> StudyResults:
    """The results with another time at which the runs began whose ids begin so."""
    chosen = results.trials["run_id"].astype("str").str.startswith(runs)
    results.trials.loc[chosen, "started"] = pd.Timestamp(time)
    return results
