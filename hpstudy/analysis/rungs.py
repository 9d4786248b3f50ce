"""One rung of a ladder: its trials, the optimum that they show, and the largest stable learning rate.

Searched values are fitted on their own scales: logs of a log scale, logs of 1 - value for betas. A key that is searched
as a share of the run is fitted and shown as such; lr_over_rule is fitted as such, and shown as lr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpstudy.analysis.foreseen import stopped_forecasts
from hpstudy.analysis.numbers import rough
from hpstudy.analysis.region import ended_trials
from hpstudy.analysis.results import StudyResults
from hpstudy.data.corpus import corpus_of
from hpstudy.errors import HpstudyError
from hpstudy.hparams import raw_key
from hpstudy.records import Outcome
from hpstudy.spec import flops_per_token
from hpstudy.statistics.scaling import Boundary, Optimum, boundary, optimum
from hpstudy.study import Choices, Dimension, FloatRange, Study, Value, num_trials
from hpstudy.study.ladder import Size

Array = NDArray[np.float64]
LEVEL = 0.9  # of the intervals of optima and predictions
UNSTABLE = 0.5  # of what training gains at a rung: a trial that gains less is beyond the boundary
OVER_RULE = "lr_over_rule"  # a key whose values are shown as lr, which rules and the boundary are about
DIGITS = 4  # of a proposed value


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 90% interval. An open end is one of the searched range: the interval may go on beyond it."""

    value: float
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    @property
    def is_open(self) -> bool:
        """Whether trials leave the value open: the interval spans the searched range."""
        return self.open_low and self.open_high

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """`0.0021 [0.0017, 0.0026]`, with two digits; `≥ 0.0026` for an open end."""
        low, high = ("≤ " if self.open_low else ""), ("≥ " if self.open_high else "")
        return f"{rough(self.value)} [{low}{rough(self.low)}, {high}{rough(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A part of the ladder with a search of its own: a rung, or the check."""

    size: Size
    results: StudyResults
    keys: tuple[str, ...]  # that laws are fitted for

    @property
    def study(self) -> Study:
        """The study of the rung."""
        return self.results.study

    @property
    def finished(self) -> bool:
        """Whether every trial of the search has ended."""
        searched = self.results.trials[self.results.trials["phase"] == "search"]
        return bool(searched["outcome"].notna().sum() >= num_trials(self.study))

    @cached_property
    def trials(self) -> tuple[list[dict[Any, Any]], Array]:
        """The search's trials as rows, and their final losses in nats.

        A stopped trial has the loss that foresight expects, and is left out without a forecast: its last loss is of a
        part of the run. A diverged one counts as a uniform guess.
        """
        rows, losses_N = ended_trials(self.study, self.results.trials)
        expected = {run: forecast.loss for run, forecast in stopped_forecasts(self.results).items()}
        worst, kept, losses = math.log(self.study.vocab_size), list[dict[Any, Any]](), list[float]()
        for row, loss in zip(rows, losses_N, strict=True):
            stopped = row["outcome"] == Outcome.PRUNED.value
            if not stopped or str(row["run_id"]) in expected:
                kept.append(row)
                losses.append(min(expected[str(row["run_id"])], worst) if stopped else float(loss))
        return kept, np.array(losses)

    @property
    def noise(self) -> float | None:
        """The standard deviation of a loss from seed to seed near the optimum, in nats; None if it is not known.

        The largest of three: the baseline's, the winner's on fresh seeds, and what the winner lost when it was trained
        again, as the best of many trials is the luckiest.
        """
        measured = [self.results.noise.sd] if self.results.noise else []
        if (found := self.results.tuned) is not None:
            losses = self.results.fresh.complete_losses(found.run_id)
            if len(losses) > 1:
                measured.append(float(losses.std(ddof=1)))
            if len(losses):
                measured.append(abs(float(losses.mean()) - self.results.one_seed_loss(found.run_id)))
        return max((each for each in measured if math.isfinite(each)), default=None)

    @cached_property
    def optimum(self) -> Optimum | None:
        """The best point by a surface through all trials; None if they are too few."""
        rows, losses_N = self.trials
        space = self.study.space
        if not rows:
            return None
        points_NK = np.array([[position(space[key], row[key]) for key in self.keys] for row in rows])
        ends = np.array([ends_of(space[key]) for key in self.keys])
        return optimum(points_NK, losses_N, ends[:, 0], ends[:, 1], noise=self.noise)

    @cached_property
    def best(self) -> dict[str, Value]:
        """The searched values of the best trial, the confirmed one if there is one; empty without a complete trial."""
        found = self.results.tuned
        if found is None:
            return {}
        return {key: self.study.value(found.hparams, key) for key in self.study.space}

    def estimate(self, key: str) -> Estimate | None:
        """The best value of a key with its interval, of lr_over_rule as lr; None if the trials are too few."""
        found = self.optimum
        if found is None:
            return None
        place = self.keys.index(key)
        ends = np.quantile(found.draws[:, place], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        centre = found.centre[place]
        low, high = min(ends[0], centre), max(ends[1], centre)
        values = {k: value_at(self.study.space[k], float(c)) for k, c in zip(self.keys, found.centre, strict=True)}
        return estimate_at(self.study, {**self.best, **values}, key, (float(centre), float(low), float(high)))

    @cached_property
    def stable_lr(self) -> Boundary | None:
        """The largest stable lr; None if lr is not searched, or no trial is stable."""
        rows, losses_N = self.trials
        if "lr" not in {raw_key(key) for key in self.study.space} or not rows:
            return None
        gain = math.log(self.study.vocab_size) - losses_N.min()
        diverged = np.array([row["outcome"] == Outcome.DIVERGED.value for row in rows])
        unstable_N = diverged | (losses_N > losses_N.min() + UNSTABLE * gain)
        lr_N = np.array([float(row["lr"]) for row in rows])
        return boundary(np.log(lr_N), unstable_N & (lr_N > lr_N[losses_N.argmin()]))

    @cached_property
    def epochs(self) -> float | None:
        """How often a run sees the corpus; None if the corpus is not there any more."""
        with suppress(HpstudyError):
            return self.size.tokens / corpus_of(self.study.spec).num_train_tokens
        return None

    @property
    def flops(self) -> float:
        """Of one run."""
        return run_flops(self.study)


def run_flops(study: Study) -> float:
    """Multiplications and additions of one run of a study whose budget is in tokens."""
    spec = study.spec
    assert spec.tokens is not None
    return float(flops_per_token(spec.model, spec.tokenizer, spec.context)) * spec.tokens


def raw_keys(keys: Sequence[str]) -> list[str]:
    """The hyperparameters that searched keys stand for: lr of lr_over_rule."""
    return [raw_key(key) for key in keys]


def position(dimension: Dimension, value: Value) -> float:
    """A value on its dimension's scale: its log, the log of 1 - value, or itself on a linear scale."""
    number = float(value)
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return math.log(1 - number)
    linear = isinstance(dimension, FloatRange) and dimension.scale == "linear"
    return number if linear else math.log(number)


def value_at(dimension: Dimension, place: float) -> float:
    """The inverse of `position`."""
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return 1 - math.exp(place)
    linear = isinstance(dimension, FloatRange) and dimension.scale == "linear"
    return place if linear else math.exp(place)


def rounded(dimension: Dimension, value: float) -> float:
    """A value with DIGITS digits; of a beta its distance to 1 has them."""
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return float(f"{1 - float(f'{1 - value:.{DIGITS}g}'):.12g}")
    return float(f"{value:.{DIGITS}g}")


def nearest(dimension: Dimension, value: float) -> Value:
    """The value of the dimension that is nearest on its scale."""
    if not isinstance(dimension, Choices):
        return dimension.nearest(value)
    return min(dimension.values, key=lambda choice: abs(position(dimension, choice) - position(dimension, value)))


def shown_key(key: str) -> str:
    """The name under which a searched key's best values are shown: lr for lr_over_rule, else the key."""
    return raw_key(key) if key == OVER_RULE else key


def estimate_at(study: Study, point: Mapping[str, Value], key: str, ends: tuple[float, float, float]) -> Estimate:
    """A value and its interval, given on a key's scale, as they are shown; lr beside the other values of a point."""
    dimension, tokens = study.space[key], study.spec.tokens
    values = [value_at(dimension, end) for end in ends]
    if key == OVER_RULE:
        values = [study.trial_hparams({**point, key: value}, tokens).lr for value in values]
    least, most = ends_of(dimension)
    opened = (ends[1] <= least, ends[2] >= most)
    if values[1] > values[2]:  # on the scale of 1 - value
        opened = (opened[1], opened[0])
    return Estimate(value=values[0], low=min(values), high=max(values), open_low=opened[0], open_high=opened[1])


def ends_of(dimension: Dimension) -> tuple[float, float]:
    """The searched box on the dimension's scale, the lower end first."""
    values = (dimension.low, dimension.high) if isinstance(dimension, FloatRange) else dimension.values
    places = [position(dimension, value) for value in values]
    return min(places), max(places)
