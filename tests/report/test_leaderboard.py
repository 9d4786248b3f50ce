"""The comparison ranks what may be ranked, beside the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpstudy.analysis.answers import Noise
from hpstudy.analysis.results import StudyResults
from hpstudy.report.leaderboard import leaderboard, one_seed_note, signed
from tests.helpers.comparisons import BOTH, FIVE, LOSS, SPEED, frames, trial
from tests.helpers.stores import results_of

Compared = Callable[..., StudyResults]


@pytest.fixture
def compared(tiny, tmp_path: Path) -> Compared:
    """The results of a study of these metrics with these rows of trials."""

    def build(*rows: dict[str, Any], metrics: str = LOSS, **more: Any) -> StudyResults:
        return results_of(tiny(more=f"[objective]\nmetric = {metrics}\n", **more), frames(*rows), tmp_path)

    return build


def test_the_baseline_is_first_and_complete_trials_follow_by_loss(compared: Compared) -> None:
    table = leaderboard(compared(*FIVE))
    assert list(table["run"]) == ["search-0000", "search-0001", "search-0004", "search-0005", "search-0007"]
    assert list(table["baseline"]) == [True, False, False, False, False]
    assert table["difference"].tolist() == pytest.approx([0, -0.1, -0.05, 0.5, 0.6])


def test_a_study_of_speed_ranks_by_it_and_shows_the_ratio(compared: Compared) -> None:
    table = leaderboard(compared(*FIVE, metrics=SPEED), best=2)
    assert list(table["run"]) == ["search-0000", "search-0005", "search-0007"]
    assert table["speedup"].tolist() == [1.0, 3.0, 2.5]


def test_two_objectives_show_the_pareto_front_by_loss(compared: Compared) -> None:
    table = leaderboard(compared(*FIVE, metrics=BOTH))
    assert list(table["run"]) == ["search-0000", "search-0001", "search-0004", "search-0005"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12, unique=True))
def test_the_front_is_exactly_the_trials_that_none_beats(compared: Compared, points: list[tuple[int, int]]) -> None:
    rows = [trial(number, float(loss), float(speed)) for number, (loss, speed) in enumerate(points, start=1)]
    table = leaderboard(compared(*rows, metrics=BOTH), best=12)
    unbeaten = [
        (loss, speed)
        for loss, speed in points
        if not any(a <= loss and b >= speed and (a, b) != (loss, speed) for a, b in points)
    ]
    assert list(zip(table["val_loss"], table["tok_per_sec"], strict=True)) == sorted(unbeaten)


@pytest.mark.parametrize("baseline", [trial(8, None, None, outcome=None, run_id="baseline-s0", phase="baseline"), None])
def test_without_a_finished_baseline_there_are_no_differences(
    compared: Compared, baseline: dict[str, Any] | None
) -> None:
    rows = [trial(1, 3.9, 500.0), *([baseline] if baseline else [])]
    results = compared(*rows, replace={"low = 1e-4": "low = 1e-3"})  # GPT-3's 6e-4 lies outside
    assert results.study.baseline_run_id == "baseline-s0"
    table = leaderboard(results)
    assert list(table["run"]) == [*(["baseline-s0"] if baseline else []), "search-0001"]
    assert table["difference"].isna().all()


def test_a_search_without_complete_trials_shows_only_the_baseline(compared: Compared) -> None:
    assert list(leaderboard(compared(trial(0, 4.0, 1000.0)))["run"]) == ["search-0000"]


def test_a_search_without_runs_has_an_empty_comparison(compared: Compared) -> None:
    assert leaderboard(compared()).empty


def test_differences_within_the_noise_are_marked() -> None:
    noise = Noise(sd=0.01, n=5, difference_sd=0.014, pairs=0, one_seed=0.039, detectable=0.02, seeds_for={})
    assert [signed(d, noise) for d in (-0.04, -0.039, 0.001)] == ["-0.0400", "~-0.0390", "~+0.0010"]
    assert signed(0.001, None) == "+0.0010"
    assert one_seed_note(noise) == "~ marks differences that two seeds of one setting show too, up to 0.039 nats."
