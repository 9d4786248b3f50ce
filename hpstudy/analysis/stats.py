"""How many runs it takes to detect a difference, and which differences so many runs detect."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import ArrayLike

from hpstudy.statistics.difference import ALPHA, Floats
from hpstudy.study.schema import LEAST_LOOK

POWER = 0.8
MOST_SEEDS = 10_000
QUANTILES = (np.arange(64) + 0.5) / 64  # the mean over them approximates the mean over a distribution


def correlation(candidate: ArrayLike, baseline: ArrayLike) -> float | None:
    """Pearson's r over shared seeds; None for fewer than three, or if one side does not vary."""
    a, b = np.asarray(candidate, float), np.asarray(baseline, float)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def power(difference: float, sd: float, seeds: int, *, sd_df: float | None = None, comparisons: int = 1) -> float:
    """The chance that a two-sided 5% test of `seeds` per arm detects a true `difference`.

    `sd` is the standard deviation of one seed's difference: sqrt(2) times that of one run if the arms are uncorrelated.
    The test has seeds - 1 degrees of freedom, which is exact for pairs and the least that Welch's test can have.
    With sd_df, the sd is itself an estimate with so many degrees of freedom, and the chance is averaged over the values
    that the true sd may have (the assurance). With several `comparisons` the level is divided by their number.
    """
    if (df := seeds - 1) < 1:
        return math.nan
    effect = difference / _plausible(sd, sd_df) * np.sqrt(seeds)
    critical = scipy.special.stdtrit(df, 1 - ALPHA / 2 / comparisons)
    # for larger effects the power is 1 to the last digit; near it, scipy's series may fail (NaN)
    missed = scipy.special.nctdtr(df, np.minimum(effect, critical + 37), critical)
    return float(np.mean(1 - np.nan_to_num(missed)))


def seeds_to_detect(difference: float, sd: float, *, sd_df: float | None = None, comparisons: int = 1) -> int | None:
    """The fewest seeds per arm with a `power` of 80%; None above MOST_SEEDS."""
    if difference <= 0:
        return None
    if sd == 0:
        return LEAST_LOOK
    return _fewest(
        LEAST_LOOK, lambda seeds: power(difference, sd, seeds, sd_df=sd_df, comparisons=comparisons) >= POWER
    )


def detectable(sd: float, seeds: int, *, sd_df: float | None = None) -> float:
    """The smallest true difference that `seeds` per arm detect with a `power` of 80%."""
    if sd == 0:
        return 0.0
    low, high = 1e-3, 1e3  # in sd
    while high - low > 1e-9:
        middle = (low + high) / 2
        if power(middle * sd, sd, seeds, sd_df=sd_df) < POWER:
            low = middle
        else:
            high = middle
    return high * sd


def largest_between_two(sd: float, df: float) -> float:
    """The size that 95% of differences stay below, if they have `sd`, measured with `df`, and no mean."""
    return float(sd * scipy.special.stdtrit(df, 1 - ALPHA / 2))


def seeds_for_width(half_width: float, sd: float, df: float, seeds: int, level: float = ALPHA) -> int | None:
    """The seeds that give an interval of that half width and `level`, if one seed's difference has `sd`.

    `sd` is measured by `seeds` seeds with `df` degrees of freedom.
    """
    per_seed = df / (seeds - 1)
    return _fewest(
        2,
        lambda n: bool(
            scipy.special.stdtrit(per_seed * (n - 1), 1 - level / 2) * sd / np.sqrt(n) <= half_width * (1 + 1e-9)
        ),
    )


def sd_from_interval(half_width: float, seeds: int, comparisons: int) -> float:
    """The standard deviation of one pair's difference whose 95% interval, adjusted for comparisons, is that wide."""
    return float(half_width / scipy.special.stdtrit(seeds - 1, 1 - ALPHA / 2 / comparisons) * np.sqrt(seeds))


def _plausible(sd: float, df: float | None) -> Floats:
    """Equally likely values of the true standard deviation, if `sd` was measured with `df` degrees of freedom."""
    return np.array([sd]) if df is None else sd * np.sqrt(df / (2 * scipy.special.gammaincinv(df / 2, QUANTILES)))


def _fewest(least: int, enough: Callable[[int], bool]) -> int | None:
    candidates = range(least, MOST_SEEDS + 1)
    found = bisect_left(candidates, True, key=enough)
    return candidates[found] if found < len(candidates) else None
