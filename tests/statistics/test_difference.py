"""The tests of a difference are scipy's, and the margin of one standard deviation has its exact test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as reference

from hpstudy.statistics.difference import NOISE_MARGIN, difference, holm
from hpstudy.study.schema import Design

A = [3.201, 3.214, 3.190, 3.222, 3.207]
B = [3.215, 3.219, 3.209, 3.230, 3.206]
ps = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_paired_difference_is_scipys_to_the_last_digits() -> None:
    d = difference(A, B, design="paired", margin=0.01)
    gaps = np.subtract(A, B)
    expected = reference.ttest_1samp(gaps, 0)
    assert [d.mean, d.sd, d.se, d.df] == pytest.approx(
        [gaps.mean(), reference.tstd(gaps), reference.sem(gaps), 4], abs=1e-10
    )
    assert [d.p, *d.interval()] == pytest.approx([expected.pvalue, *expected.confidence_interval()], abs=1e-10)


def test_welch_difference_is_scipys_to_the_last_digits() -> None:
    d = difference(A, B[:4], design="independent", margin=0.01)
    expected = reference.ttest_ind(A, B[:4], equal_var=False)
    assert [d.p, *d.interval(), d.df] == pytest.approx(
        [expected.pvalue, *expected.confidence_interval(), expected.df], abs=1e-10
    )


@pytest.mark.parametrize("design", ["paired", "independent"])
def test_the_interval_of_another_level_is_scipys(design: Design) -> None:
    d = difference(A, B, design=design, margin=0.01)
    expected = reference.ttest_rel(A, B) if design == "paired" else reference.ttest_ind(A, B, equal_var=False)
    assert [*d.interval(0.0123)] == pytest.approx([*expected.confidence_interval(1 - 0.0123)], abs=1e-10)


def test_the_spread_of_one_seeds_difference_is_that_of_two_arms_if_they_are_independent() -> None:
    d = difference(A, B, design="independent")
    assert d.sd == pytest.approx(np.hypot(reference.tstd(A), reference.tstd(B)))


@pytest.mark.parametrize("design", ["paired", "independent"])
@settings(max_examples=30)
@given(margin=st.floats(1e-4, 0.05))
def test_equivalence_is_the_90_percent_interval_within_the_margin(design: Design, margin: float) -> None:
    d = difference(A, B, design=design, margin=margin)
    low, high = d.interval(0.1)
    assert (d.p_equivalent < 0.05) == (-margin < low and high < margin)


def test_equivalence_is_the_larger_of_scipys_two_one_sided_tests() -> None:
    gaps, margin = np.subtract(A, B), 0.01
    above = reference.ttest_1samp(gaps, -margin, alternative="greater").pvalue
    below = reference.ttest_1samp(gaps, margin, alternative="less").pvalue
    paired = difference(A, B, design="paired", margin=margin)
    assert paired.p_equivalent == pytest.approx(max(above, below), abs=1e-10)
    above = reference.ttest_ind(A, np.subtract(B, margin), equal_var=False, alternative="greater").pvalue
    below = reference.ttest_ind(A, np.add(B, margin), equal_var=False, alternative="less").pvalue
    independent = difference(A, B, design="independent", margin=margin)
    assert independent.p_equivalent == pytest.approx(max(above, below), abs=1e-10)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_without_a_margin_equivalence_is_the_chance_of_so_small_a_t_at_a_difference_of_one_sd(n: int) -> None:
    """The t of a true difference of one sd is (z + sqrt(n)) / sqrt(chi2 / (n - 1)); integrated over chi2."""
    gaps = 0.1 + np.random.default_rng(n).normal(0, 1, n)
    d = difference(gaps, np.zeros(n), design="paired")
    t = abs(reference.ttest_1samp(gaps, 0).statistic)

    def density(chi2: float) -> float:
        reach = t * np.sqrt(chi2 / (n - 1))
        inside = reference.norm.cdf(reach - np.sqrt(n)) - reference.norm.cdf(-reach - np.sqrt(n))
        return float(inside * reference.chi2.pdf(chi2, n - 1))

    expected, _ = integrate.quad(density, 0, 50 * n, points=[n], limit=200)
    assert d.p_equivalent == pytest.approx(expected, rel=1e-6)
    assert d.margin == pytest.approx(NOISE_MARGIN * reference.tstd(gaps))


def test_without_a_margin_5_percent_of_the_differences_of_one_sd_look_equivalent() -> None:
    """20,000 comparisons of 8 pairs; seed 5; three standard errors."""
    gaps = np.random.default_rng(5).normal(1, 1, (20_000, 8))
    found = difference(gaps, np.zeros_like(gaps), design="paired").p_equivalent <= 0.05
    assert found.mean() == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 20_000) ** 0.5)


def test_without_a_margin_the_unit_of_the_losses_does_not_matter() -> None:
    nats, bits = (difference(np.multiply(A, unit), np.multiply(B, unit), design="paired") for unit in (1, 1 / 0.6931))
    assert [bits.p, bits.p_equivalent, bits.margin] == pytest.approx([nats.p, nats.p_equivalent, nats.margin / 0.6931])


@pytest.mark.parametrize("design", ["paired", "independent"])
def test_runs_without_noise_are_compared_without_a_warning(design: Design) -> None:
    apart = difference([5.5] * 3, [5.0] * 3, design=design, margin=0.01)
    assert (apart.p, apart.p_equivalent, *apart.interval()) == pytest.approx((0, 1, 0.5, 0.5))


def test_equal_runs_are_equivalent_within_any_margin_but_none() -> None:
    same = difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], design="paired", margin=0.01)
    assert (same.p, same.p_equivalent, *same.interval()) == pytest.approx((1, 0, 0, 0))
    assert difference([1.0, 2.0], [1.0, 2.0], design="paired", margin=0).p_equivalent == 1


def test_further_axes_are_further_comparisons() -> None:
    for margin in (0.01, None):
        both = difference([A, B], [B, A], design="paired", margin=margin)
        alone = difference(B, A, design="paired", margin=margin)
        assert both.mean[1] == alone.mean
        assert both.p_equivalent[1] == pytest.approx(alone.p_equivalent)
        assert [ends[1] for ends in both.interval()] == pytest.approx([*alone.interval()])


def test_holm_is_the_hand_computation() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(ps)
def test_holm_is_between_the_raw_value_and_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
