"""The difference between two sets of runs, with its tests.

Arrays hold one value per seed along their last axis. Other axes are separate comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from hpstudy.study.schema import Design

ALPHA = 0.05  # two-sided for a difference; each side of an equivalence test
NOISE_MARGIN = 1.0  # the margin if the study states none, in standard deviations of one seed's difference

Floats = NDArray[np.float64]
Numbers = Any  # a float, or an array over the other axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Candidate minus baseline: floats, or arrays over the other axes."""

    mean: Numbers
    sd: Numbers  # of one seed's difference
    se: Numbers
    df: Numbers
    p: Numbers  # two-sided, for no difference
    p_equivalent: Numbers  # for a difference of the margin or more, either way
    margin: Numbers  # in the unit of the values; measured if the study states none

    def interval(self, level: float = ALPHA) -> tuple[Numbers, Numbers]:
        """The ends of the interval that misses the true difference with a chance of `level`."""
        half = scipy.special.stdtrit(self.df, 1 - level / 2) * self.se
        return self.mean - half, self.mean + half


def difference(candidate: ArrayLike, baseline: ArrayLike, *, design: Design, margin: float | None = None) -> Difference:
    """Student's paired test if the design is paired, else Welch's; at least two seeds each.

    With a `margin`, equivalence is tested by two one-sided tests (Schuirmann 1987, doi:10.1007/BF01068419). Without
    one the margin is NOISE_MARGIN standard deviations, and the test is that of a standardized difference with the
    noncentral t distribution (Wellek 2010, Testing Statistical Hypotheses of Equivalence and Noninferiority, 5.3).
    A difference of exactly zero without noise has p = 1.
    """
    a, b = np.asarray(candidate, float), np.asarray(baseline, float)
    mean = a.mean(axis=-1) - b.mean(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if design == "paired":
            n = a.shape[-1]
            sd = np.std(a - b, axis=-1, ddof=1)
            se, df = sd / np.sqrt(n), n - 1.0 + np.zeros_like(mean)
        else:
            n = min(a.shape[-1], b.shape[-1])
            of_a, of_b = a.var(axis=-1, ddof=1) / a.shape[-1], b.var(axis=-1, ddof=1) / b.shape[-1]
            se = np.sqrt(of_a + of_b)
            sd = se * np.sqrt(n)
            df = (of_a + of_b) ** 2 / (of_a**2 / (a.shape[-1] - 1) + of_b**2 / (b.shape[-1] - 1))
            df = np.where(se > 0, df, a.shape[-1] + b.shape[-1] - 2.0)
        t = mean / se
        if margin is None:
            limit = NOISE_MARGIN * np.sqrt(n)  # the noncentrality of a difference of the margin
            equivalent = scipy.special.nctdtr(df, limit, np.abs(t)) - scipy.special.nctdtr(df, limit, -np.abs(t))
            equivalent = np.where(se > 0, equivalent, np.where(mean == 0, 0.0, 1.0))  # equal runs are equal
        else:
            equivalent = scipy.special.stdtr(df, (np.abs(mean) - margin) / se)
    return Difference(
        mean=mean,
        sd=sd,
        se=se,
        df=df,
        p=np.nan_to_num(2 * scipy.special.stdtr(df, -np.abs(t)), nan=1.0),
        p_equivalent=np.nan_to_num(equivalent, nan=1.0),
        margin=NOISE_MARGIN * sd if margin is None else margin,
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
