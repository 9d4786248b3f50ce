"""The powers agree with published tables, with simulation and with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from hpstudy.analysis import stats
from hpstudy.study.schema import LEAST_LOOK

A = [3.201, 3.214, 3.190, 3.222, 3.207]
B = [3.215, 3.219, 3.209, 3.230, 3.206]


def test_95_percent_of_the_pairs_of_runs_differ_by_less_than_the_largest_between_two() -> None:
    """2,000 noises measured with 5 runs each, and a pair of runs for each; seed 3."""
    rng = np.random.default_rng(3)
    sds, pairs = rng.normal(0, 0.1, (2000, 5)).std(axis=1, ddof=1), rng.normal(0, 0.1, (2000, 2))
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    of_a_difference = np.sqrt(2) * sds
    share = np.mean([gap <= stats.largest_between_two(sd, 4) for gap, sd in zip(apart, of_a_difference, strict=True)])
    assert share == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_80_percent_power_are_those_of_the_published_tables(effect: float, seeds: int) -> None:
    assert stats.seeds_to_detect(effect, 1.0) == seeds


@settings(max_examples=15)
@given(st.integers(LEAST_LOOK, 40), st.sampled_from([None, 2, 4, 9]))
def test_detectable_difference_is_the_one_that_needs_as_many_seeds(n: int, sd_df: float | None) -> None:
    smallest = stats.detectable(0.01, n, sd_df=sd_df)
    assert stats.power(smallest, 0.01, n, sd_df=sd_df) == pytest.approx(0.8)
    assert stats.seeds_to_detect(smallest * 1.001, 0.01, sd_df=sd_df) == n


def test_noise_known_from_few_seeds_asks_for_more_seeds() -> None:
    needed = [stats.seeds_to_detect(0.002, 0.0016, sd_df=df) for df in (2, 4, 9, None)]
    assert needed == [15, 10, 9, 8]


def test_no_number_of_seeds_detects_no_difference() -> None:
    assert stats.seeds_to_detect(0, 1.0) is None


def test_no_verdict_takes_fewer_than_three_seeds() -> None:
    assert stats.seeds_to_detect(0.1, 0.0) == stats.seeds_to_detect(100.0, 1.0) == LEAST_LOOK == 3


def test_more_candidates_need_more_seeds_to_be_detected() -> None:
    needed = [stats.seeds_to_detect(0.01, 0.01, sd_df=4, comparisons=k) for k in (1, 2, 5)]
    assert None not in needed
    assert needed[0] < needed[1] < needed[2]  # type: ignore[operator]


@pytest.mark.parametrize("sd_df", [None, 4])
def test_a_power_is_the_share_of_simulated_studies_that_detect_the_difference(sd_df: int | None) -> None:
    """20,000 studies of 6 pairs, whose true sd follows from one that was measured with sd_df; seed 8."""
    rng = np.random.default_rng(8)
    true = 1.0 if sd_df is None else np.sqrt(sd_df / rng.chisquare(sd_df, (20_000, 1)))
    found = reference.ttest_1samp(1.5 + true * rng.normal(size=(20_000, 6)), 0, axis=1).pvalue <= 0.05
    expected = stats.power(1.5, 1.0, 6, sd_df=sd_df)
    assert found.mean() == pytest.approx(expected, abs=4 * (0.25 / 20_000) ** 0.5)


def test_correlation_is_pearsons_and_none_if_nothing_varies() -> None:
    assert stats.correlation(A, B) == pytest.approx(np.corrcoef(A, B)[0, 1], abs=1e-10)
    assert stats.correlation(A, [1.0] * 5) is None
    assert stats.correlation(A[:2], B[:2]) is None


def test_an_interval_of_the_same_width_takes_as_many_seeds_at_the_same_noise() -> None:
    half = reference.t.ppf(0.975, 6) * 0.01 / np.sqrt(7)
    assert stats.seeds_for_width(float(half), 0.01, 6, 7) == 7
