"""What several looks at growing data are worth: the level at each look that keeps the whole race to one level.

Without a difference the t statistics of the looks depend on nothing but their numbers of seeds: neither on the noise
nor on its size, only on its being normal. So one simulation of paths calibrates every study with the same looks. All
looks have the same nominal level (Pocock 1977, doi:10.1093/biomet/64.2.191), here for t tests of few seeds.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy

from hpstudy.statistics.difference import Floats

PATHS = 400_000  # simulated races
ERRORS = 3  # Monte-Carlo standard errors by which a chance is rated higher than it was counted: 5% is 4.9% counted


def overall(p: float, looks: tuple[int, ...]) -> float:
    """The chance that a race without a difference shows a p value of at most `p` at any of its looks."""
    if len(looks) == 1:
        return p
    found = int(np.searchsorted(_smallest(looks), p, side="right"))
    return min(float(_chances()[found]), len(looks) * p, 1.0)


def nominal(level: float, looks: tuple[int, ...]) -> float:
    """The p value that one look may have at most, so that the whole race errs with a chance of `level`."""
    if len(looks) == 1:
        return level
    found = int(np.searchsorted(_chances(), level, side="right")) - 1
    return max(float(_smallest(looks)[found - 1]) if found > 0 else 0.0, level / len(looks))


@functools.cache
def _chances() -> Floats:
    """The chance of an event that 0, 1, 2, ... PATHS of the paths show, ERRORS standard errors above the count."""
    counted = np.arange(PATHS + 1)
    chances: Floats = (counted + ERRORS * np.sqrt(counted + ERRORS**2)) / PATHS
    return chances


@functools.cache
def _smallest(looks: tuple[int, ...]) -> Floats:
    """The smallest two-sided p value of each of PATHS races without a difference, sorted."""
    rng = np.random.default_rng(0)
    total, squares = np.zeros(PATHS), np.zeros(PATHS)
    smallest, before = np.ones(PATHS), 0
    for n in looks:
        more = n - before
        added = rng.normal(0, np.sqrt(more), PATHS)
        total += added
        squares += added**2 / more
        if more > 1:  # the spread of the new values around their own mean
            squares += rng.chisquare(more - 1, PATHS)
        t = total / np.sqrt(n) / np.sqrt((squares - total**2 / n) / (n - 1))
        np.minimum(smallest, 2 * scipy.special.stdtr(n - 1, -np.abs(t)), out=smallest)
        before = n
    return np.sort(smallest)
