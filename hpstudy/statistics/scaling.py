"""A ladder's mathematics: the optimum of each rung, and laws of how it moves with a model's size.

Everything is in natural logs: of the searched values, of the sizes, of the learning rate. Losses are in nats.
Shapes: N trials, K keys, R draws or rungs, M sizes (of weights, of tokens), P features of a quadratic surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

MISFIT = 0.4  # a surface misses a loss by this share of the loss's distance to the best
CURVATURE = 2.5  # prior mean of a key's curvature, in distances of the median trial to the best per half box squared
LEAST_NOISE = 0.003  # nats, if seeds or residuals show less
LEAST_SHARE = 0.1  # of the box's variance that trials take away at the least: a flat surface's error stays finite
CLOUD, SWEEPS = 256, 20  # starting points of a minimization, and its passes over the keys
BEYOND = 0.2  # half boxes: the least error of a centre at an end of the box, as the optimum may lie beyond
SURE = 0.9  # that a key's surface curves upward, by the trials alone, and that its draws lie inside of the box
BEND_LEVEL = 0.1  # false alarms of the check for a bend
LEVEL = 0.9  # of an interval
TOGETHER = 0.01  # sizes that differ from a common course by less than this share vary together


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best point of one rung, in the coordinates that were searched."""

    centre: Array  # K
    draws: Array  # R x K: other best points that the trials allow, inside of the box
    error: Array  # K standard errors of the centre, for a law
    bent: Flags  # K: whether the optimum lies inside of the box; if not, only toward which end it lies is known
    loss: float  # predicted at the centre, in nats
    curvature: Array  # K, nats per squared log unit


def least_trials(num_keys: int) -> int:
    """Trials that an optimum takes: as many as a surface without cross terms has parameters, and two more."""
    return 2 * num_keys + 3


def optimum(
    points_NK: Array,
    losses_N: Array,
    low_K: Array,
    high_K: Array,
    *,
    noise: float | None,
    resamples: int = 200,
    seed: int = 0,
) -> Optimum | None:
    """The best point by a quadratic surface through all trials; None with fewer than `least_trials`, or equal losses.

    A loss far above the best says little about where the best point is: its weight is 1 / (noise^2 + (MISFIT times
    its distance to the best)^2), so that neither a cliff nor a flat side bends the surface near the optimum. A prior
    holds what few trials leave open. In half boxes and distances of the median trial to the best, it is CURVATURE +- 1
    for curvatures, 0 +- 1/2 for cross terms and 0 +- 2 for slopes. `noise` is the standard deviation of a loss from
    seed to seed, in nats, if it is known. It is never taken for less than the residuals of the better half of the
    trials show, so that no single lucky trial is the fit.

    Each draw weighs the trials anew (Rubin 1981, "The Bayesian bootstrap"), adds seed noise to the losses, and moves
    the prior's means by its standard deviations. The box keeps the draws of a flat surface together; as each rung
    has the same box, the error takes that out: 1/error^2 = 1/(of the draws)^2 - 1/(of an even spread in the box)^2.
    No error is below that of a grid with as many values of the key as the trials have, and none below BEYOND half
    boxes if the centre is at an end of the box: the optimum may lie outside.
    """
    num_trials, num_keys = points_NK.shape
    best = float(losses_N.min())
    if num_trials < least_trials(num_keys) or float(np.ptp(losses_N)) == 0:
        return None
    middle_K, half_K = (low_K + high_K) / 2, (high_K - low_K) / 2
    heights_N, features_NP = losses_N - best, _features((points_NK - middle_K) / half_K)
    median = float(np.median(heights_N)) or float(heights_N.max())
    pairs = num_keys * (num_keys - 1) // 2
    means_P = np.array([0.0, *[0.0] * num_keys, *[CURVATURE] * num_keys, *[0.0] * pairs]) * median
    sds_P = np.array([10.0, *[2.0] * num_keys, *[1.0] * num_keys, *[0.5] * pairs]) * median

    def surfaces(weights_RN: Array, heights_RN: Array, means_RP: Array) -> Array:
        """The coefficients of each draw's surface, as R x P."""
        squares_RPP = np.einsum("rn,np,nq->rpq", weights_RN, features_NP, features_NP) + np.diag(sds_P**-2)
        targets_RP = (weights_RN * heights_RN) @ features_NP + means_RP * sds_P**-2
        return np.asarray(np.linalg.solve(squares_RPP, targets_RP[..., None])[..., 0])

    def weights(noise: float) -> Array:
        return np.asarray(1 / (noise**2 + (MISFIT * heights_N) ** 2))

    near_N = heights_N <= np.median(heights_N)
    surface_P = surfaces(weights(0.1 * median)[None], heights_N[None], means_P[None])[0]
    residual = float(np.sqrt(np.mean((heights_N - features_NP @ surface_P)[near_N] ** 2)))
    noise = max(noise or 0.0, residual, LEAST_NOISE)
    weights_N = weights(noise)
    surface_P = surfaces(weights_N[None], heights_N[None], means_P[None])[0]
    centre_K = _lowest(surface_P[None], num_keys)[0]

    rng = np.random.default_rng(seed)
    shares_RN = rng.dirichlet(np.ones(num_trials), resamples) * num_trials
    noisy_RN = heights_N + noise * rng.standard_normal((resamples, num_trials))
    drawn_RP = surfaces(weights_N * shares_RN, noisy_RN, means_P + sds_P * rng.standard_normal((resamples, len(sds_P))))
    draws_RK = _lowest(drawn_RP, num_keys)
    variance_K = np.square(draws_RK - centre_K).mean(axis=0)
    apart_K = np.array([2 / len(np.unique(values_N)) for values_N in points_NK.T])  # trials of one key, in half boxes
    variance_K = np.maximum(variance_K, apart_K**2 / 12)
    error_K = np.sqrt(variance_K / np.maximum(1 - 3 * variance_K, LEAST_SHARE))
    error_K = np.where(np.abs(centre_K) == 1, np.maximum(error_K, BEYOND), error_K)

    # What the trials alone say of the curvatures: the draws less the prior's mean, CURVATURE, and precision, 1.
    curvatures_RK = drawn_RP[:, 1 + num_keys : 1 + 2 * num_keys] / median
    precision_K = 1 / curvatures_RK.var(axis=0)
    evidence_K = (curvatures_RK.mean(axis=0) * precision_K - CURVATURE) / np.sqrt(np.maximum(precision_K - 1, 0.1))
    inside_K = (np.abs(draws_RK) < 1).mean(axis=0) >= SURE
    return Optimum(
        centre=middle_K + half_K * centre_K,
        draws=middle_K + half_K * draws_RK,
        error=half_K * error_K,
        bent=inside_K & (evidence_K > scipy.special.ndtri(SURE)),
        loss=best + float(_features(centre_K[None])[0] @ surface_P),
        curvature=surface_P[1 + num_keys : 1 + 2 * num_keys] / half_K**2,
    )


def _features(points_NK: Array) -> Array:
    """1, each coordinate, half of each square, and each pair's product."""
    rows, columns = np.triu_indices(points_NK.shape[1], 1)
    ones_N1 = np.ones((len(points_NK), 1))
    return np.hstack([ones_N1, points_NK, points_NK**2 / 2, points_NK[:, rows] * points_NK[:, columns]])


@cache
def _cloud(num_keys: int) -> Array:
    return np.asarray(2 * scipy.stats.qmc.Sobol(num_keys, rng=0).random(CLOUD) - 1)


def _lowest(surfaces_RP: Array, num_keys: int) -> Array:
    """The lowest point of each surface in the box from -1 to 1: key by key, from the best point of a cloud."""
    points_CK = _cloud(num_keys)
    lowest_RK = points_CK[(surfaces_RP @ _features(points_CK).T).argmin(axis=1)].copy()
    slopes_RK, curvatures_RK = surfaces_RP[:, 1 : 1 + num_keys], surfaces_RP[:, 1 + num_keys : 1 + 2 * num_keys]
    rows, columns = np.triu_indices(num_keys, 1)
    crosses_RKK = np.zeros((len(surfaces_RP), num_keys, num_keys))
    crosses_RKK[:, rows, columns] = crosses_RKK[:, columns, rows] = surfaces_RP[:, 1 + 2 * num_keys :]
    for _ in range(SWEEPS):
        for key in range(num_keys):
            slope_R = slopes_RK[:, key] + (crosses_RKK[:, key] * lowest_RK).sum(axis=1)
            curvature_R = curvatures_RK[:, key]
            inner_R = np.clip(-slope_R / np.where(curvature_R > 0, curvature_R, 1.0), -1, 1)
            lowest_RK[:, key] = np.where(curvature_R > 0, inner_R, -np.sign(slope_R))
    return np.asarray(lowest_RK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """value = intercept + slope . (log sizes - centre), with what is not known of it."""

    centre: Array  # M, where the intercept holds
    coefficients: Array  # intercept, then M slopes
    covariance: Array  # of the coefficients
    scatter: float  # standard deviation of a rung's optimum about the line, beyond the rungs' errors
    df: int  # of the t intervals
    bend: float | None  # p value of the rungs if a line is enough; None with too few rungs to tell

    @property
    def bent(self) -> bool:
        """Whether a line is not enough, with BEND_LEVEL false alarms."""
        return self.bend is not None and self.bend < BEND_LEVEL

    @property
    def slope(self) -> Array:
        """M: by how much the value's log grows with that of each size."""
        return self.coefficients[1:]

    def slope_interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """The ends of each slope's interval."""
        half_M = scipy.special.stdtrit(self.df, (1 + level) / 2) * np.sqrt(np.diag(self.covariance)[1:])
        return self.slope - half_M, self.slope + half_M

    def at(self, sizes_M: Array, level: float = LEVEL) -> tuple[float, float, float]:
        """The optimum at log sizes and the ends of its interval, which counts the scatter of a new rung."""
        row = np.array([1.0, *(sizes_M - self.centre)])
        mean = float(row @ self.coefficients)
        half = scipy.special.stdtrit(self.df, (1 + level) / 2) * np.sqrt(row @ self.covariance @ row + self.scatter**2)
        return mean, mean - float(half), mean + float(half)


def law(sizes_RM: Array, means_R: Array, errors_R: Array) -> Law:
    """A log-linear law of R rungs by weighted least squares, from each rung's optimum and its standard error.

    Sizes that do not vary have a slope of 0: one rung gives a constant, and of sizes that vary together only their
    joint direction counts. The scatter between rungs is estimated from the residuals (DerSimonian and Laird 1986,
    doi:10.1016/0197-2456(86)90046-2). The covariance grows with residuals that are larger than errors and scatter, and
    intervals are Student's with a degree of freedom for each rung beyond the coefficients, at least one (Knapp and
    Hartung 2003, doi:10.1002/sim.1482; here never narrower than without their factor).
    """
    weights_R = errors_R**-2
    centre_M = np.average(sizes_RM, axis=0, weights=weights_R)
    _, spreads, axes = np.linalg.svd(sizes_RM - centre_M, full_matrices=False)
    axes_MA = axes[spreads > TOGETHER * spreads.max(initial=1.0)].T
    along_RA = (sizes_RM - centre_M) @ axes_MA
    line_RP = np.column_stack([np.ones(len(means_R)), along_RA])
    free = len(means_R) - line_RP.shape[1]
    _, covariance_PP, misfit = _least_squares(line_RP, means_R, errors_R)
    scatter = 0.0
    if free > 0:
        leverage = np.trace(covariance_PP @ (line_RP.T * weights_R**2) @ line_RP)
        scatter = float(np.sqrt(max(0.0, misfit - free) / (weights_R.sum() - leverage)))
    coefficients_P, covariance_PP, left = _least_squares(line_RP, means_R, np.hypot(errors_R, scatter))

    # The scatter would hide a bend, so squares along the axes are tested against the rungs' errors alone.
    added = min(along_RA.shape[1], free)
    _, _, bowed = _least_squares(np.column_stack([line_RP, along_RA[:, :added] ** 2]), means_R, errors_R)

    turn = scipy.linalg.block_diag(np.eye(1), axes_MA)  # from the axes to the sizes
    return Law(
        centre=centre_M,
        coefficients=turn @ coefficients_P,
        covariance=turn @ covariance_PP @ turn.T * max(1.0, left / max(free, 1)),
        scatter=scatter,
        df=max(free, 1),
        bend=float(scipy.special.chdtrc(added, max(misfit - bowed, 0.0))) if added > 0 else None,
    )


def _least_squares(design_RP: Array, means_R: Array, errors_R: Array) -> tuple[Array, Array, float]:
    """Coefficients, their covariance, and the sum of squared residuals in units of the errors."""
    scaled_RP, scaled_R = design_RP / errors_R[:, None], means_R / errors_R
    inverse_PR = np.linalg.pinv(scaled_RP)
    coefficients_P = inverse_PR @ scaled_R
    return coefficients_P, inverse_PR @ inverse_PR.T, float(np.square(scaled_R - scaled_RP @ coefficients_P).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """The largest stable learning rate of one rung, as a natural logarithm."""

    value: float
    error: float  # its standard error
    bounded: bool  # False if no trial was unstable: it lies above `value`, the largest learning rate that was tried


def boundary(log_lr_N: Array, unstable_N: Flags) -> Boundary | None:
    """Where half of the trials become unstable; None without a stable trial, as it then lies below all.

    The chance of a trial is logistic in log lr. The value and its error are mean and standard deviation over a
    threshold spread evenly from the smallest to the largest learning rate and a width spread evenly in its log: other
    keys blur the threshold, by how much is not known.
    """
    if unstable_N.all():
        return None
    low, high = float(log_lr_N.min()), float(log_lr_N.max())
    if not unstable_N.any():
        return Boundary(value=high, error=(high - low) / len(log_lr_N), bounded=False)
    thresholds_T, widths_W = np.linspace(low, high, 201), np.geomspace(0.02, 1.0, 12)
    steps_TWN = (log_lr_N - thresholds_T[:, None, None]) / widths_W[:, None]
    fits_TW = scipy.special.log_expit(np.where(unstable_N, steps_TWN, -steps_TWN)).sum(axis=-1)
    chances_T = scipy.special.softmax(fits_TW).sum(axis=1)
    value = float(chances_T @ thresholds_T)
    return Boundary(value=value, error=float(np.sqrt(chances_T @ (thresholds_T - value) ** 2)), bounded=True)
