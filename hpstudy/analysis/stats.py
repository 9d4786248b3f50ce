"""Differences between two sets of runs, and how many runs it takes to detect them.

Arrays hold one value per seed along their last axis. Other axes are separate comparisons.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from hpstudy.analysis.answers import ALPHA
from hpstudy.study.schema import Design

POWER = 0.8
MOST_SEEDS = 10_000
QUANTILES = (np.arange(64) + 0.5) / 64  # the mean over them approximates the mean over a distribution

Floats = NDArray[np.float64]
Numbers = Any  # a float, or an array over the other axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Candidate minus baseline: floats, or arrays over the other axes."""

    mean: Numbers
    se: Numbers
    low: Numbers  # of the 95% interval
    high: Numbers
    df: Numbers
    p: Numbers  # two-sided, for no difference
    p_equivalent: Numbers  # for a difference of `margin` or more, either way (TOST)


def difference(candidate: ArrayLike, baseline: ArrayLike, *, design: Design, margin: float) -> Difference:
    """Student's paired test if the design is paired, else Welch's; at least two seeds each.

    TOST: Schuirmann 1987, doi:10.1007/BF01068419. A difference of exactly zero without noise has p = 1.
    """
    a, b = np.asarray(candidate, float), np.asarray(baseline, float)

    def test(shift: float, alternative: Literal["two-sided", "greater", "less"]) -> Any:
        if design == "paired":
            return stats.ttest_rel(a + shift, b, axis=-1, alternative=alternative)
        return stats.ttest_ind(a + shift, b, axis=-1, alternative=alternative, equal_var=False)

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # raised when all runs agree
        both, above, below = test(0, "two-sided"), test(margin, "greater"), test(-margin, "less")
        interval = both.confidence_interval(1 - ALPHA)
    return Difference(
        mean=a.mean(axis=-1) - b.mean(axis=-1),
        se=(interval.high - interval.low) / 2 / stats.t.ppf(1 - ALPHA / 2, both.df),
        low=interval.low,
        high=interval.high,
        df=both.df,
        p=np.nan_to_num(both.pvalue, nan=1.0),
        p_equivalent=np.nan_to_num(np.maximum(above.pvalue, below.pvalue), nan=1.0),
    )


def holm(p: ArrayLike) -> Floats:
    """P values adjusted for their number along the last axis. Valid for dependent tests too.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


def correlation(candidate: ArrayLike, baseline: ArrayLike) -> float | None:
    """Pearson's r over shared seeds; None for fewer than three, or if one side does not vary."""
    a, b = np.asarray(candidate, float), np.asarray(baseline, float)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.pearsonr(a, b).statistic)


def power(difference: float, sd: float, seeds: int, *, sd_df: float | None = None, comparisons: int = 1) -> float:
    """The chance that a two-sided 5% test of `seeds` per arm detects a true `difference`.

    `sd` is the standard deviation of one seed's difference: sqrt(2) times that of one run if the arms are uncorrelated.
    The test has seeds - 1 degrees of freedom, which is exact for pairs and the least that Welch's test can have.
    With sd_df, the sd is itself an estimate with so many degrees of freedom, and the chance is averaged over the values
    that the true sd may have (the assurance). With several `comparisons` the level is divided by their number.
    """
    df = seeds - 1
    effect = difference / _plausible(sd, sd_df) * np.sqrt(seeds)
    critical = stats.t.ppf(1 - ALPHA / 2 / comparisons, df)
    # for larger effects the power is 1 to the last digit, and scipy's series may fail
    return float(np.mean(stats.nct.sf(critical, df, np.minimum(effect, critical + 37))))


def seeds_to_detect(difference: float, sd: float, *, sd_df: float | None = None, comparisons: int = 1) -> int | None:
    """The fewest seeds per arm with a `power` of 80%; None above MOST_SEEDS."""
    if difference <= 0:
        return None
    if sd == 0:
        return 2
    return _fewest(2, lambda seeds: power(difference, sd, seeds, sd_df=sd_df, comparisons=comparisons) >= POWER)


def detectable(sd: float, seeds: int, *, sd_df: float | None = None) -> float:
    """The smallest true difference that `seeds` per arm detect with a `power` of 80%."""
    if sd == 0:
        return 0.0
    found = optimize.brentq(lambda ratio: power(ratio * sd, sd, seeds, sd_df=sd_df) - POWER, 1e-3, 1e3, xtol=1e-9)
    return float(found) * sd


def seeds_to_decide(se: float, df: float, seeds: int, *, margin: float, comparisons: int = 1) -> int | None:
    """Further seeds per arm that decide with a chance of 80%, whatever the true difference is.

    A difference is undecided while the estimate is in a window of width (t95 + t90) * se - margin: then the 95%
    interval reaches zero, and the 90% interval reaches beyond the margin. More seeds close the window. The chance is
    for the worst true difference, averaged over the noise that `se` with `df` degrees of freedom leaves plausible. With
    several `comparisons` both levels are divided by their number. None without a margin, or above MOST_SEEDS.
    """
    if margin <= 0:
        return None
    true = _plausible(se * np.sqrt(seeds), df)[:, None]  # standard deviation of one seed's difference

    def decides(more: int) -> bool:
        total, new_df = seeds + more, df * more / (seeds - 1)
        squares = df * se**2 * seeds + true**2 * stats.chi2.ppf(QUANTILES, new_df)
        measured = np.sqrt(squares / (df + new_df))
        levels = np.array([1 - ALPHA / 2 / comparisons, 1 - ALPHA / comparisons])
        t = np.sum(stats.t.ppf(levels, df + new_df))
        window = np.maximum(t * measured - margin * np.sqrt(total), 0) / np.maximum(true, np.finfo(float).tiny)
        return bool(np.mean(2 * stats.norm.sf(window / 2)) >= POWER)

    return _fewest(1, decides)


def largest_between_two(sd: float, df: float) -> float:
    """The difference that 95% of pairs of runs stay below, if one run has `sd`, measured with `df`."""
    return float(np.sqrt(2) * sd * stats.t.ppf(1 - ALPHA / 2, df))


def seeds_for_width(half_width: float, sd: float, df: float, seeds: int) -> int | None:
    """The seeds that give a 95% interval of that half width, if one seed's difference has `sd`.

    `sd` is measured by `seeds` seeds with `df` degrees of freedom.
    """
    per_seed = df / (seeds - 1)
    return _fewest(
        2, lambda n: bool(stats.t.ppf(1 - ALPHA / 2, per_seed * (n - 1)) * sd / np.sqrt(n) <= half_width * (1 + 1e-9))
    )


def _plausible(sd: float, df: float | None) -> Floats:
    """Equally likely values of the true standard deviation, if `sd` was measured with `df` degrees of freedom."""
    return np.array([sd]) if df is None else sd * np.sqrt(df / stats.chi2.ppf(QUANTILES, df))


def _fewest(least: int, enough: Callable[[int], bool]) -> int | None:
    candidates = range(least, MOST_SEEDS + 1)
    found = bisect_left(candidates, True, key=enough)
    return candidates[found] if found < len(candidates) else None
