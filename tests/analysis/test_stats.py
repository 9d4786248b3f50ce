"""The statistics are scipy's, and the powers agree with published tables and with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from hpstudy.analysis import stats
from hpstudy.study.schema import Design

A = [3.201, 3.214, 3.190, 3.222, 3.207]
B = [3.215, 3.219, 3.209, 3.230, 3.206]
ps = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_paired_difference_is_scipys_to_the_last_digits() -> None:
    d = stats.difference(A, B, design="paired", margin=0.01)
    gaps = np.subtract(A, B)
    expected = reference.ttest_1samp(gaps, 0)
    low, high = expected.confidence_interval()
    assert [d.mean, d.se, d.df] == pytest.approx([gaps.mean(), reference.sem(gaps), 4], abs=1e-10)
    assert [d.p, d.low, d.high] == pytest.approx([expected.pvalue, low, high], abs=1e-10)


def test_welch_difference_is_scipys_to_the_last_digits() -> None:
    d = stats.difference(A, B[:4], design="independent", margin=0.01)
    expected = reference.ttest_ind(A, B[:4], equal_var=False)
    low, high = expected.confidence_interval()
    assert [d.p, d.low, d.high, d.df] == pytest.approx([expected.pvalue, low, high, expected.df], abs=1e-10)


@pytest.mark.parametrize("design", ["paired", "independent"])
@settings(max_examples=30)
@given(margin=st.floats(1e-4, 0.05))
def test_equivalence_is_the_90_percent_interval_within_the_margin(design: Design, margin: float) -> None:
    d = stats.difference(A, B, design=design, margin=margin)
    half = d.se * reference.t.ppf(0.95, d.df)
    inside = -margin < d.mean - half and d.mean + half < margin
    assert (d.p_equivalent < 0.05) == inside


def test_equivalence_is_the_larger_of_scipys_two_one_sided_tests() -> None:
    gaps, margin = np.subtract(A, B), 0.01
    above = reference.ttest_1samp(gaps, -margin, alternative="greater").pvalue
    below = reference.ttest_1samp(gaps, margin, alternative="less").pvalue
    paired = stats.difference(A, B, design="paired", margin=margin)
    assert paired.p_equivalent == pytest.approx(max(above, below), abs=1e-10)
    above = reference.ttest_ind(A, np.subtract(B, margin), equal_var=False, alternative="greater").pvalue
    below = reference.ttest_ind(A, np.add(B, margin), equal_var=False, alternative="less").pvalue
    independent = stats.difference(A, B, design="independent", margin=margin)
    assert independent.p_equivalent == pytest.approx(max(above, below), abs=1e-10)


def test_95_percent_of_the_pairs_of_runs_differ_by_less_than_the_largest_between_two() -> None:
    """2,000 noises measured with 5 runs each, and a pair of runs for each; seed 3."""
    rng = np.random.default_rng(3)
    sds, pairs = rng.normal(0, 0.1, (2000, 5)).std(axis=1, ddof=1), rng.normal(0, 0.1, (2000, 2))
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    share = np.mean([gap <= stats.largest_between_two(sd, 4) for gap, sd in zip(apart, sds, strict=True)])
    assert share == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2000) ** 0.5)


def test_runs_without_noise_are_compared_without_a_warning() -> None:
    same = stats.difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], design="paired", margin=0.01)
    assert (same.p, same.p_equivalent, same.low, same.high) == pytest.approx((1, 0, 0, 0))
    apart = stats.difference([5.5] * 3, [5.0] * 3, design="independent", margin=0.01)
    assert (apart.p, apart.p_equivalent) == pytest.approx((0, 1))
    assert stats.difference([1.0, 2.0], [1.0, 2.0], design="paired", margin=0).p_equivalent == 1


def test_further_axes_are_further_comparisons() -> None:
    both = stats.difference([A, B], [B, A], design="paired", margin=0.01)
    alone = stats.difference(B, A, design="paired", margin=0.01)
    assert both.mean[1] == alone.mean
    assert both.p_equivalent[1] == pytest.approx(alone.p_equivalent)


def test_holm_is_the_hand_computation() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(ps)
def test_holm_is_between_the_raw_value_and_bonferronis(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_80_percent_power_are_those_of_the_published_tables(effect: float, seeds: int) -> None:
    assert stats.seeds_to_detect(effect, 1.0) == seeds


@settings(max_examples=15)
@given(st.integers(2, 40), st.sampled_from([None, 2, 4, 9]))
def test_detectable_difference_is_the_one_that_needs_as_many_seeds(n: int, sd_df: float | None) -> None:
    smallest = stats.detectable(0.01, n, sd_df=sd_df)
    assert stats.power(smallest, 0.01, n, sd_df=sd_df) == pytest.approx(0.8)
    assert stats.seeds_to_detect(smallest * 1.001, 0.01, sd_df=sd_df) == n


def test_noise_known_from_few_seeds_asks_for_more_seeds() -> None:
    needed = [stats.seeds_to_detect(0.002, 0.0016, sd_df=df) for df in (2, 4, 9, None)]
    assert needed == [15, 10, 9, 8]


def test_more_seeds_decide_nothing_without_a_margin() -> None:
    assert stats.seeds_to_decide(0.01, 4, 5, margin=0) is None
    assert stats.seeds_to_detect(0, 1.0) is None


def test_more_candidates_need_more_seeds_to_be_decided() -> None:
    needed = [stats.seeds_to_decide(0.01, 4, 5, margin=0.02, comparisons=k) for k in (1, 2, 5)]
    assert None not in needed
    assert needed == sorted(needed)  # type: ignore[type-var]
    assert needed[0] != needed[2]


def test_correlation_is_pearsons_and_none_if_nothing_varies() -> None:
    assert stats.correlation(A, B) == pytest.approx(np.corrcoef(A, B)[0, 1], abs=1e-10)
    assert stats.correlation(A, [1.0] * 5) is None
    assert stats.correlation(A[:2], B[:2]) is None


def test_an_interval_of_the_same_width_takes_as_many_seeds_at_the_same_noise() -> None:
    half = reference.t.ppf(0.975, 6) * 0.01 / np.sqrt(7)
    assert stats.seeds_for_width(float(half), 0.01, 6, 7) == 7
