"""Forecasts a trial's final validation loss from its losses so far and its learning-rate schedule, and stops by it.

A trial's schedule is known before it ends, and most of what a run still gains comes from the rest of its learning rates
and from their decay (Tissue et al. 2024, arXiv:2408.11029). So the fall from the last evaluation to the end is learnt
from the study's finished trials, by a Gaussian process over the losses so far and the schedule's sums. Its interval is
as wide as its own leave-one-out residuals, not as its assumptions say.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpstudy.hparams import HParams
from hpstudy.schedule import learning_rate
from hpstudy.study import Study

Floats = npt.NDArray[np.float64]

LEAST_SHARE = 0.15  # of the evaluations, before which no trial is stopped
MOST_SHARE = 0.7  # after which none is: little is left to save, and its real loss is worth more
LEAST_FINISHED = 10  # trials that ended at their last evaluation, before one is stopped
LEAST_LEARNT = 5  # of them, before anything is forecast
MOST_LEARNT = 64  # the last ones, which forecasts are learnt from and coverage is measured on
LEVEL, DEVIATE = 0.9, 1.645  # of the interval, and the normal deviate of its end
STUDENT = 2.015  # the deviate of its end for 5 degrees of freedom
LEAST_COVERAGE = 0.8  # of the interval on finished trials, each forecast from those before it
MOST_CHANCE = 0.01  # of ending among the best, below which a trial is stopped
AUDIT_EVERY = 10  # one trial in so many is not stopped
POINTS = 50  # of the learning rate between two evaluations
MEMORY = 0.999  # of a fall of the learning rate, per step (lambda of Tissue et al.)
LEAST_LOSS, LEAST_SLOPE, LEAST_DECAY = 1e-6, 2e-3, 1e-12  # below which logarithms say nothing
LENGTHS = (1.0, 2.0, 4.0, 8.0)
NOISES = (1e-3, 1e-2, 3e-2, 0.1, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the forecast sees of a trial."""

    number: int
    hparams: HParams
    losses: Mapping[int, float]  # evaluation index -> val loss, so far or of the whole run

    def until(self, at: int) -> Curve:
        """The trial as it was after evaluation `at`."""
        losses = {index: loss for index, loss in self.losses.items() if index <= at}
        return Curve(number=self.number, hparams=self.hparams, losses=losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A final loss, whose logarithm has Student's distribution with 5 degrees of freedom: some forecasts miss far."""

    log_loss: float
    spread: float  # of the logarithm
    reach: float  # of the logarithm, to either end of the 90% interval

    @property
    def loss(self) -> float:
        """The median, in nats."""
        return math.exp(self.log_loss)

    @property
    def low(self) -> float:
        """The lower end of the interval, in nats."""
        return math.exp(self.log_loss - self.reach)

    @property
    def high(self) -> float:
        """The upper end of the interval, in nats."""
        return math.exp(self.log_loss + self.reach)

    def __str__(self) -> str:
        """`3.6100 [3.5900, 3.6300]`, in nats."""
        return f"{self.loss:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def chance_below(self, limit: float) -> float:
        """The chance that the final loss is at most `limit` nats; 5% at the lower end of the interval, or less."""
        spread = max(self.spread, self.reach / STUDENT)
        angle = math.atan((math.log(limit) - self.log_loss) / spread / math.sqrt(5))
        sine, cosine = math.sin(angle), math.cos(angle)
        return 0.5 + (angle + sine * cosine * (1 + 2 / 3 * cosine**2)) / math.pi


class Decision(enum.Enum):
    """What becomes of a trial at an evaluation."""

    WATCH = "watch"  # too little is known, or the intervals missed too often
    GO_ON = "go on"
    STOP = "stop"
    AUDIT = "audit"  # it would be stopped, but goes on to show whether that was right


class Foresight:
    """Forecasts and decides for the trials of one study of `evals` evaluations and `tokens` tokens a run.

    A trial is among the best if it is in the `top`, or within `margin` nats of the best. Lower is better. What is
    computed of finished trials is kept, since they never change.
    """

    def __init__(self, *, evals: int, tokens: int, top: int, margin: float) -> None:
        self._evals, self._tokens, self._top, self._margin = evals, tokens, top, margin
        self.first = max(1, math.ceil(round(LEAST_SHARE * evals, 6)))
        """The first evaluation at which a trial may be stopped."""
        self.last = math.floor(round(MOST_SHARE * evals, 6))
        """The last one."""
        self._schedules: dict[int, tuple[Floats, Floats]] = {}  # by trial number
        self._hits: dict[tuple[int, int], bool] = {}  # by trial number and evaluation: whether the interval held

    def forecast(self, finished: Sequence[Curve], trial: Curve, at: int) -> Forecast | None:
        """The final loss of `trial` as seen after evaluation `at`, learnt from trials that finished before.

        None if fewer than LEAST_LEARNT of them were trained to their end, or a loss of the trial is not known.
        """
        learnt = self._whole(finished)[-MOST_LEARNT:]
        if len(learnt) < LEAST_LEARNT or not any(index <= at for index in trial.losses):
            return None
        features = np.array([self._features(curve, at) for curve in [*learnt, trial]])
        falls = np.array([math.log(self._loss(curve, at) / self._loss(curve, self._evals)) for curve in learnt])
        fall, spread, reach = regressed(features[:-1], falls, features[-1])
        log_loss = math.log(self._loss(trial, at)) - fall
        return Forecast(log_loss=log_loss, spread=spread, reach=reach)

    def coverage(self, finished: Sequence[Curve], at: int) -> tuple[int, int]:
        """(hits, forecasts): how often the interval held the final loss of a finished trial.

        Each was forecast from the trials before it; only the last MOST_LEARNT count.
        """
        whole = self._whole(finished)
        tested = range(max(LEAST_LEARNT, len(whole) - MOST_LEARNT), len(whole))
        return sum(self._hit(whole, index, at) for index in tested), len(tested)

    def decision(self, finished: Sequence[Curve], trial: Curve, at: int, found: Forecast | None) -> Decision:
        """What becomes of `trial` after evaluation `at`, given the finished trials that it may know, in their order.

        `found` is its `forecast` there.
        """
        whole = self._whole(finished)
        if not self.first <= at <= self.last:
            return Decision.GO_ON
        if len(whole) < LEAST_FINISHED:
            return Decision.WATCH
        if found is None or found.chance_below(self.limit(whole)) >= MOST_CHANCE:
            return Decision.GO_ON
        hits, forecasts = self.coverage(whole, at)
        if hits < LEAST_COVERAGE * forecasts:
            return Decision.WATCH
        return Decision.AUDIT if is_audited(trial.number) else Decision.STOP

    def limit(self, finished: Sequence[Curve]) -> float:
        """The highest final loss among the best."""
        losses = sorted(self._loss(curve, self._evals) for curve in self._whole(finished))
        return max(losses[min(self._top, len(losses)) - 1], losses[0] + self._margin)

    def _whole(self, finished: Sequence[Curve]) -> list[Curve]:
        """The trials that were trained to their last evaluation."""
        return [curve for curve in finished if self._evals in curve.losses]

    def _hit(self, whole: Sequence[Curve], index: int, at: int) -> bool:
        key = (whole[index].number, at)
        if key not in self._hits:
            found = self.forecast(whole[:index], whole[index].until(at), at)
            self._hits[key] = found is not None and found.low <= whole[index].losses[self._evals] <= found.high
        return self._hits[key]

    def _features(self, curve: Curve, at: int) -> Floats:
        """What a fall from evaluation `at` to the end is learnt from: losses so far, the schedule, batch and betas."""
        if curve.number not in self._schedules:
            self._schedules[curve.number] = schedule_sums(curve.hparams, self._tokens, self._evals)
        rates, decays = self._schedules[curve.number]
        now = self._loss(curve, at)
        slope = self._loss(curve, at - max(1, at // 3)) - now
        values = (
            now,
            self._loss(curve, at / 2),
            max(slope, LEAST_SLOPE),
            rates[at],
            rates[-1] / rates[at],
            max(decays[-1] - decays[at], LEAST_DECAY),
            curve.hparams.batch_tokens,
            1 - curve.hparams.beta1,
            1 - curve.hparams.beta2,
        )
        return np.log(values)

    def _loss(self, curve: Curve, at: float) -> float:
        """The loss at evaluation `at`; one that a large batch skipped lies on the line between its neighbours."""
        indices = sorted(curve.losses)
        return max(float(np.interp(at, indices, [curve.losses[index] for index in indices])), LEAST_LOSS)


def is_audited(number: int) -> bool:
    """Whether a trial is never stopped, one in AUDIT_EVERY, so that it shows what stopping would have lost."""
    return number % AUDIT_EVERY == AUDIT_EVERY - 1


def foresight(study: Study) -> Foresight | None:
    """The study's foresight, if it has that pruner."""
    if study.budget.pruner.name != "foresight":
        return None
    assert study.spec.tokens is not None, "foresight needs a budget in tokens"
    margin = study.confirm.margin or 0.0
    return Foresight(evals=study.spec.evals, tokens=study.spec.tokens, top=study.confirm.top, margin=margin)


def schedule_sums(hparams: HParams, tokens: int, evals: int) -> tuple[Floats, Floats]:
    """(S1, S2) of Tissue et al. at evaluations 0..evals of a run of `tokens` tokens, with the batch at its full size.

    S1 sums the learning rates of all steps; S2 sums, over all steps, how much the learning rate has fallen lately: each
    fall counts with a weight that shrinks by MEMORY a step.
    """
    steps = tokens / hparams.batch_tokens / (evals * POINTS)  # in one stretch
    places = (tokens * index // (evals * POINTS) for index in range(evals * POINTS))
    rates = np.array([learning_rate(hparams, place, hparams.batch_tokens, tokens) for place in places])
    falls = np.maximum(-np.diff(rates, prepend=rates[0]), 0.0)
    kept, fallen = MEMORY**steps, np.empty_like(rates)
    lately = 0.0
    for index, fall in enumerate(falls):
        fallen[index] = lately = kept * lately + fall
    sums = (np.concatenate([[0.0], np.cumsum(each * steps)])[::POINTS] for each in (rates, fallen))
    first, second = sums
    return first, second


def regressed(known: Floats, targets: Floats, wanted: Floats) -> tuple[float, float, float]:
    """(mean, spread, reach) of the target at `wanted`, from rows of features and their targets.

    Gaussian processes with a constant, a linear and a squared-exponential part on standardised features, of several
    lengths and noises, each weighted by its leave-one-out likelihood (Rasmussen and Williams 2006, section 5.4.2).
    `spread` makes the leave-one-out residuals of size 1 on average. `reach` is the half-width that holds LEVEL of them,
    and at least that of Student's distribution (Abramowitz and Stegun, 26.7.5).
    """
    scale = known.std(axis=0)
    scale[scale < 1e-9] = 1.0
    points, point = (known - known.mean(axis=0)) / scale, (wanted - known.mean(axis=0)) / scale
    middle, unit = float(np.median(targets)), float(targets.std()) or 1.0
    heights = (targets - middle) / unit
    likelihoods, means, spreads, residuals, widths = [], [], [], [], []
    for length in LENGTHS:
        values, vectors = np.linalg.eigh(_covariance(points, points, length))
        across = _covariance(points, point[None], length)[:, 0] @ vectors
        alone = float(_covariance(point[None], point[None], length)[0, 0])
        turned, values = vectors.T @ heights, np.maximum(values, 0.0)
        for noise in NOISES:
            weights = 1 / (values + noise)
            variances = 1 / (vectors**2 @ weights)
            missed = vectors @ (weights * turned) * variances
            size = float(np.mean(missed**2 / variances)) + 1e-12
            likelihoods.append(-0.5 * float(np.log(variances * size).sum()))
            means.append(float(across @ (weights * turned)))
            spreads.append(size * max(alone + noise - float(across**2 @ weights), noise))
            residuals.append(missed)
            widths.append(variances * size)
    shares = np.exp(np.array(likelihoods) - max(likelihoods))
    shares /= shares.sum()
    mean, missed = float(shares @ means), shares @ np.array(residuals)
    spread = math.sqrt(float(shares @ (np.array(spreads) + (np.array(means) - mean) ** 2)))
    width = np.sqrt(shares @ (np.array(widths) + (np.array(residuals) - missed) ** 2))
    ratios = np.sort(np.abs(missed) / width)
    rank = min(math.ceil(LEVEL * (len(ratios) + 1)), len(ratios))  # as in split conformal prediction
    widest = max(float(ratios[rank - 1]), DEVIATE + (DEVIATE**3 + DEVIATE) / (4 * (len(ratios) - 1)))
    return middle + unit * mean, unit * spread, unit * spread * widest


def _covariance(one: Floats, other: Floats, length: float) -> Floats:
    keys = one.shape[1]
    apart = ((one[:, None] - other[None]) ** 2).sum(axis=-1) / keys
    return np.asarray(1.0 + one @ other.T / keys + length**2 * np.exp(-apart / (2 * length**2)))
