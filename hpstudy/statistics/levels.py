"""What several looks at growing data are worth: the level at each look that keeps the whole race to one level.

Without a difference the t statistics of the looks depend on nothing but their numbers of seeds: neither on the noise
nor on its size, only on its being normal. So one simulation of paths calibrates every study with the same looks. All
looks have the same nominal level (Pocock 1977, doi:10.1093/biomet/64.2.191), here for t tests of few seeds.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy

from hpstudy.statistics.difference import Flags, Floats

PATHS = 400_000  # simulated races
TAIL = 0.05  # the largest level that studies ask for; most p values are slow to compute, and larger
ERRORS = 3  # Monte-Carlo standard errors by which a chance is rated higher than it was counted: 5% is 4.9% counted


def overall(p: float, looks: tuple[int, ...]) -> float:
    """The chance that a race without a difference shows a p value of at most `p` at any of its looks."""
    if len(looks) == 1:
        return p
    found = int(np.count_nonzero(_reaches(p, looks)))
    return min(float(_chances()[found]), len(looks) * p, 1.0)


def nominal(level: float, looks: tuple[int, ...]) -> float:
    """The p value that one look may have at most, so that the whole race errs with a chance of `level`."""
    if len(looks) == 1:
        return level
    found = int(np.searchsorted(_chances(), level, side="right")) - 1
    smallest = _smallest(looks, TAIL if level <= TAIL else 1.0)
    return max(float(smallest[found - 1]) if found > 0 else 0.0, level / len(looks))


@functools.cache
def _chances() -> Floats:
    """The chance of an event that 0, 1, 2, ... PATHS of the paths show, ERRORS standard errors above the count."""
    counted = np.arange(PATHS + 1)
    chances: Floats = (counted + ERRORS * np.sqrt(counted + ERRORS**2)) / PATHS
    return chances


@functools.cache
def _smallest(looks: tuple[int, ...], most: float) -> Floats:
    """The smallest p value of each of the paths in which one is at most `most`, sorted."""
    far = _paths(looks)[:, _reaches(most, looks)]
    smallest: Floats = np.sort((2 * scipy.special.stdtr(_df(looks), -far)).min(axis=0))
    return smallest


def _df(looks: tuple[int, ...]) -> Floats:
    """[look, 1]: each look's degrees of freedom."""
    return np.array(looks, float)[:, None] - 1


def _reaches(p: float, looks: tuple[int, ...]) -> Flags:
    """[path]: whether any look of it has a two-sided p value of at most `p`."""
    reached: Flags = np.any(_paths(looks) >= -scipy.special.stdtrit(_df(looks), p / 2), axis=0)
    return reached


@functools.cache
def _paths(looks: tuple[int, ...]) -> Floats:
    """[look, path]: the size of the t statistic at every look of PATHS races without a difference."""
    rng = np.random.default_rng(0)
    total, squares, before = np.zeros(PATHS), np.zeros(PATHS), 0
    sizes = np.empty((len(looks), PATHS))
    for size, n in zip(sizes, looks, strict=True):
        more = n - before
        added = rng.normal(0, np.sqrt(more), PATHS)
        total += added
        squares += added**2 / more
        if more > 1:  # the spread of the new values around their own mean
            squares += rng.chisquare(more - 1, PATHS)
        size[:] = np.abs(total / np.sqrt(n) / np.sqrt((squares - total**2 / n) / (n - 1)))
        before = n
    return sizes
