"""How far each searched value may move before it matters, and the simplest values among the good ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hpstudy.analysis.numbers import listed, plain
from hpstudy.analysis.ranges import position, value_at
from hpstudy.analysis.surrogate import Array, Surrogate, fit
from hpstudy.hparams import HParams, unused
from hpstudy.records import Outcome, bounded_loss
from hpstudy.study import Choices, Dimension, FloatRange, Study, Value

LEAST_TRIALS = 10  # and three for each coordinate besides
MOST_TRIALS = 150  # fitted: the better half of them the best there are, the others spread over the rest
LEAST_EXPLAINED = 0.5  # of the variance of the losses, by predictions from the other trials
STEPS = 200  # of a range, at which losses are predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """The values of one key with which the predicted loss is within the margin; the others are as found."""

    key: str
    values: tuple[Value, ...]  # the ends of a range; or all such choices, in the file's order
    everything: bool  # whether all that was searched is within

    def __str__(self) -> str:
        if len(self.values) == 2 and not isinstance(self.values[0], str):
            return f"{self.key} {plain(self.values[0])} to {plain(self.values[1])}"
        return f"{self.key} {listed(list(map(plain, self.values)))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where the loss is predicted to be as good as that of the best values."""

    margin: float  # nats: the study's, or the surrogate's error if that is larger
    by_error: bool  # whether it is the surrogate's error
    keys: tuple[Within, ...]  # the searched keys that have an effect, in the file's order
    kept: tuple[str, ...]  # keys that can have the baseline's value, all at once
    others: Mapping[str, Value]  # the simplest values of the other keys

    def sentence(self, opponent: str) -> str:
        """The ranges and the simplest values. `opponent` is what the baseline is called."""
        why = " (as closely as the trials predict each other)" if self.by_error else ""
        theirs = f"{'the ' if opponent == 'baseline' else ''}{opponent}'s"
        others = listed([f"{key} {plain(value)}" for key, value in self.others.items()])
        kept = f"{theirs} {listed(list(self.kept))}" if self.kept else ""
        simplest = f"{kept} with {others}" if kept and others else kept or others
        if not others:
            simplest = f"{theirs} values"
        free = [each.key for each in self.keys if each.everything]
        ranges = [str(each) for each in self.keys if not each.everything]
        ranges += [f"{listed(free)} anything searched"] if free else []
        return (
            f"Predicted within {self.margin:.2g} nats of the best{why}: {'; '.join(ranges)}; each with the other "
            f"values as found. Simplest: {simplest}."
        )


def region(study: Study, trials: pd.DataFrame, best: HParams, margin: float) -> Region | None:
    """The region around the values `best`; `trials` are the study's runs.

    None if the study has another objective than the loss, too few trials, or trials that do not predict each other.
    """
    if study.metrics != ("val/loss",) or (found := surrogate(study, trials)) is None:
        return None
    keys = [key for key in study.space if key not in unused(best)]
    values: dict[str, Value] = {key: study.value(best, key) for key in study.space}
    around = _Around(study, found, values, max(margin, found.error))
    kept, others = around.simplest(keys)
    return Region(
        margin=around.margin,
        by_error=found.error > margin,
        keys=tuple(around.within(key) for key in keys),
        kept=kept,
        others=others,
    )


def surrogate(study: Study, trials: pd.DataFrame) -> Surrogate | None:
    """The model of the search's finished trials, or None if they are too few or do not predict each other."""
    searched, losses_N = ended_trials(study, trials)
    points_NK = np.array([coordinates(study.space, row) for row in searched])
    if not len(searched) or len(searched) < LEAST_TRIALS + 3 * points_NK.shape[1] or not np.ptp(losses_N):
        return None
    chosen = np.argsort(losses_N, kind="stable")
    if len(chosen) > MOST_TRIALS:
        half = MOST_TRIALS // 2
        spread = np.linspace(half, len(chosen) - 1, MOST_TRIALS - half).astype(int)
        chosen = np.concatenate([chosen[:half], chosen[spread]])
    found = fit(points_NK[chosen], losses_N[chosen])
    return found if found.explained >= LEAST_EXPLAINED else None


def ended_trials(study: Study, trials: pd.DataFrame) -> tuple[list[dict[Any, Any]], Array]:
    """The search's trials that have a loss, as rows, and their losses in nats.

    A diverged trial counts as a uniform guess, a pruned one with its last loss, which is above its final one.
    """
    ended = (Outcome.COMPLETE.value, Outcome.DIVERGED.value, Outcome.PRUNED.value)
    searched = trials[(trials["phase"] == "search") & trials["outcome"].isin(ended)].to_dict("records")
    return searched, np.array([_loss(study, row) for row in searched])


def coordinates(space: Mapping[str, Dimension], values: Mapping[Any, Any]) -> list[float]:
    """Values as numbers from 0 to 1, on the search's scales: one for each key, but one for each choice of text."""
    return [number for key, dimension in space.items() for number in _coordinates(dimension, values[key])]


def _coordinates(dimension: Dimension, value: Value) -> list[float]:
    if isinstance(value, str) and isinstance(dimension, Choices):
        return [float(value == choice) for choice in dimension.values]
    if isinstance(dimension, Choices):
        return [sorted(dimension.values).index(value) / (len(dimension.values) - 1)]
    return [position(dimension, value)]


def _loss(study: Study, row: Mapping[Any, Any]) -> float:
    diverged = row["outcome"] == Outcome.DIVERGED.value
    return bounded_loss(None if diverged else float(row["val_loss"]), study.vocab_size)


class _Around:
    """Predictions around the best values."""

    def __init__(self, study: Study, found: Surrogate, values: dict[str, Value], margin: float) -> None:
        self._study, self._found, self._values, self.margin = study, found, values, margin
        (best,) = self._losses([values])
        self._most = best + margin

    def within(self, key: str) -> Within:
        """The values of `key` that are within the margin while the others stay."""
        dimension = self._study.space[key]
        if isinstance(dimension, Choices):
            losses = self._losses([self._values | {key: value} for value in dimension.values])
            pairs = zip(dimension.values, losses, strict=True)
            fitting = tuple(value for value, loss in pairs if loss <= self._most or value == self._values[key])
            return Within(key=key, values=fitting, everything=len(fitting) == len(dimension.values))
        places = np.linspace(0, 1, STEPS + 1)
        fits = self._losses([self._values | {key: value_at(dimension, place)} for place in places]) <= self._most
        best = float(self._values[key])
        place = STEPS * min(max(position(dimension, best), 0.0), 1.0)
        low, high = math.ceil(place), math.floor(place)  # the best itself lies between them, or on both
        while low > 0 and fits[low - 1]:
            low -= 1
        while high < STEPS and fits[high + 1]:
            high += 1
        everything = (low, high) == (0, STEPS)
        if everything:
            return Within(key=key, values=(dimension.low, dimension.high), everything=True)
        ends = (min(best, value_at(dimension, places[low])), max(best, value_at(dimension, places[high])))
        return Within(key=key, values=_few_digits(dimension, ends, best), everything=False)

    def simplest(self, keys: list[str]) -> tuple[tuple[str, ...], dict[str, Value]]:
        """The keys that can have the baseline's value together, and the others' values with few digits.

        Each time, the key that costs least takes the baseline's value, until the next is beyond the margin.
        """
        space = self._study.space
        baseline = {key: self._study.value(self._study.baseline, key) for key in keys}
        values, kept = dict(self._values), set[str]()
        open_keys = [key for key in keys if space[key].contains(baseline[key])]
        while open_keys:
            tried = [values | {key: baseline[key]} for key in open_keys]
            losses = self._losses(tried)
            least = int(np.argmin(losses))
            if losses[least] > self._most:
                break
            values = tried[least]
            kept.add(open_keys.pop(least))
        for key in keys:
            if key not in kept and isinstance(dimension := space[key], FloatRange):
                values = self._with_few_digits(values, key, dimension)
        ordered = tuple(key for key in keys if key in kept)
        return ordered, {key: values[key] for key in keys if key not in kept}

    def _with_few_digits(self, values: dict[str, Value], key: str, dimension: FloatRange) -> dict[str, Value]:
        for digits in (1, 2, 3):
            rounded = values | {key: _rounded(dimension, float(values[key]), digits)}
            if dimension.contains(rounded[key]) and self._losses([rounded])[0] <= self._most:
                return rounded
        return values

    def _losses(self, points: list[dict[str, Value]]) -> Array:
        return self._found.predict(np.array([coordinates(self._study.space, values) for values in points]))


def _few_digits(dimension: FloatRange, ends: tuple[float, float], best: float) -> tuple[float, float]:
    """The ends of a range with as few digits as keep them in the space, apart, and on either side of the best."""
    for digits in range(2, 7):
        low, high = (_rounded(dimension, end, digits) for end in ends)
        inside = dimension.contains(low) and dimension.contains(high)
        if inside and low <= best <= high and (low < high or ends[0] == ends[1]):
            return low, high
    return ends


def _rounded(dimension: FloatRange, value: float, digits: int) -> float:
    """The value with so many digits; on a log1m scale its distance to 1 has them."""
    if dimension.scale == "log1m":
        short = float(f"{1 - value:.{digits}g}")
        return round(1 - short, digits - math.floor(math.log10(short)))
    return float(f"{value:.{digits}g}")
