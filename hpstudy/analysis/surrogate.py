"""A smooth model of loss over a search's space: Gaussian process regression on finished trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOOR = 0.1  # of the median's distance to the best loss: below it the log scale becomes linear
JITTER = 1e-8  # added to the noise variance, for the factorization
LENGTH, AMPLITUDE, NOISE = np.log(0.8), 0.0, np.log(0.1)  # centres of the priors, in logs
SPREADS = (1.0, 1.0, 1.5)  # of these priors


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Predicts losses between the trials that it was fitted to.

    It works on log(loss - best + a tenth of the median's distance to the best), so that differences near the best
    count and a diverged trial does not.
    """

    points: Array  # N x K coordinates of the trials, from 0 to 1
    losses: Array  # N, in nats
    shift: float  # added to a loss before its log
    mean: float
    scale: float
    lengths: Array  # K
    amplitude: float  # variances, in units of scale
    noise: float
    weights: Array  # N
    left_out: Array  # each trial's prediction by the others, on the log scale
    left_out_sd: Array

    def predict(self, points_MK: Array) -> Array:
        """The median predicted loss at each point, in nats."""
        kernel_MN = self.amplitude * matern(squares(points_MK, self.points), self.lengths)[0]
        return self._nats(self.mean + self.scale * (kernel_MN @ self.weights))

    @property
    def explained(self) -> float:
        """Share of the trials' variance, on the log scale, that predictions from the other trials explain."""
        logs_N = np.log(self.losses + self.shift)
        return float(1 - np.square(logs_N - self.left_out).mean() / logs_N.var())

    @property
    def error(self) -> float:
        """Nats by which predictions from the other trials miss, in the median of the better half of the trials."""
        misses_N = np.abs(self._nats(self.left_out) - self.losses)
        return float(np.median(misses_N[self.losses <= np.median(self.losses)]))

    @property
    def covered(self) -> float:
        """Share of the trials inside the 90% interval that the other trials predict."""
        logs_N = np.log(self.losses + self.shift)
        return float((np.abs(logs_N - self.left_out) < 1.645 * self.left_out_sd).mean())

    def _nats(self, logs: Array) -> Array:
        return np.asarray(np.exp(logs) - self.shift)


def fit(points_NK: Array, losses_N: Array) -> Surrogate:
    """Fits lengths, amplitude and noise by their posterior mode; the same trials always give the same surrogate.

    The losses must not all be equal. Kernel: Matern 5/2 with a length for each coordinate; predictions that leave one
    trial out are Rasmussen and Williams 2006, equation 5.12.
    """
    best, median = float(losses_N.min()), float(np.median(losses_N))
    shift = FLOOR * ((median - best) or float(np.ptp(losses_N))) - best
    logs_N = np.log(losses_N + shift)
    mean, scale = float(logs_N.mean()), float(logs_N.std())
    targets_N, num_keys = (logs_N - mean) / scale, points_NK.shape[1]
    squares_NNK = squares(points_NK, points_NK)
    centres = np.array([*[LENGTH] * num_keys, AMPLITUDE, NOISE])
    spreads = np.array([*[SPREADS[0]] * num_keys, *SPREADS[1:]])

    def loss(logs: Array) -> tuple[float, Array]:
        """The negative log posterior of the logs of lengths, amplitude and noise sd, and its gradient."""
        lengths_K, amplitude, noise = np.exp(logs[:-2]), np.exp(2 * logs[-2]), np.exp(2 * logs[-1])
        matern_NN, slope_NN = matern(squares_NNK, lengths_K)
        factor = scipy.linalg.cho_factor(amplitude * matern_NN + (noise + JITTER) * np.eye(len(targets_N)), lower=True)
        inverse_NN = scipy.linalg.cho_solve(factor, np.eye(len(targets_N)))
        weights_N = inverse_NN @ targets_N
        outer_NN = inverse_NN - np.outer(weights_N, weights_N)
        by_length = np.einsum("ij,ijk->k", outer_NN * slope_NN * amplitude, squares_NNK) / lengths_K**2
        gradient = np.array([*by_length / 2, (outer_NN * matern_NN).sum() * amplitude, np.trace(outer_NN) * noise])
        prior = (logs - centres) / spreads
        value = targets_N @ weights_N / 2 + np.log(np.diag(factor[0])).sum() + prior @ prior / 2
        return float(value), gradient + prior / spreads

    bounds = [(np.log(0.05), np.log(20.0))] * num_keys + [(-3.0, 3.0), (np.log(1e-3), 1.0)]
    logs = scipy.optimize.minimize(loss, centres, jac=True, method="L-BFGS-B", bounds=bounds).x
    lengths_K, amplitude, noise = np.exp(logs[:-2]), float(np.exp(2 * logs[-2])), float(np.exp(2 * logs[-1]))
    kernel_NN = amplitude * matern(squares_NNK, lengths_K)[0] + (noise + JITTER) * np.eye(len(targets_N))
    inverse_NN = np.linalg.inv(kernel_NN)
    weights_N, precisions_N = inverse_NN @ targets_N, np.diag(inverse_NN)
    return Surrogate(
        points=points_NK,
        losses=losses_N,
        shift=shift,
        mean=mean,
        scale=scale,
        lengths=lengths_K,
        amplitude=amplitude,
        noise=noise,
        weights=weights_N,
        left_out=mean + scale * (targets_N - weights_N / precisions_N),
        left_out_sd=scale / np.sqrt(precisions_N),
    )


def squares(points_MK: Array, others_NK: Array) -> Array:
    """Squared differences by coordinate, as M x N x K."""
    return np.square(points_MK[:, None] - others_NK[None])


def matern(squares_MNK: Array, lengths_K: Array) -> tuple[Array, Array]:
    """The Matern 5/2 kernel of amplitude 1, and its derivative by the log of a length.

    The derivative is over that key's square / length**2.
    """
    root_MN = np.sqrt(5 * (squares_MNK / lengths_K**2).sum(axis=-1))
    decay_MN = np.exp(-root_MN)
    return (1 + root_MN + root_MN**2 / 3) * decay_MN, 5 / 3 * (1 + root_MN) * decay_MN
