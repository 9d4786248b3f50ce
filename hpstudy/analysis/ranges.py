"""Where values lie within the ranges of a search, and ranges whose best value is at an end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpstudy.analysis.numbers import plain
from hpstudy.hparams import SEARCHABLE, HParams, unused
from hpstudy.study import Choices, Dimension, FloatRange, Study, Value

NEAR = 0.05  # of the range


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEnd:
    """A searched key whose best value is within NEAR of an end of its range: the optimum may be outside."""

    key: str
    value: float
    side: str  # lower or upper
    end: float
    wider: FloatRange  # half as long again at that end, on the search's scale

    def __str__(self) -> str:
        return (
            f"{self.key}: the best trial's {plain(self.value)} is within {NEAR:.0%} of the {self.side} end of its "
            f"range, {self.end:g}; a wider range may hold a better one"
        )

    @property
    def as_toml(self) -> str:
        """The wider range as a study file states it."""
        wider = self.wider
        return f'{self.key} = {{ low = {wider.low:.12g}, high = {wider.high:.12g}, scale = "{wider.scale}" }}'


def position(dimension: Dimension, value: Value) -> float:
    """A value's position between low (0) and high (1) on the search's scale; choices are placed in order."""
    if isinstance(dimension, Choices):
        return dimension.values.index(value) / (len(dimension.values) - 1)
    scaled, low, high = (_scaled(dimension.scale, float(v)) for v in (value, dimension.low, dimension.high))
    return (scaled - low) / (high - low)


def value_at(dimension: FloatRange, where: float) -> float:
    """The inverse of `position`, for a range."""
    low, high = (_scaled(dimension.scale, end) for end in (dimension.low, dimension.high))
    return min(max(_unscaled(dimension.scale, low + where * (high - low)), dimension.low), dimension.high)


def at_ends(study: Study, best: HParams) -> Iterator[AtEnd]:
    """The ranges that the best trial comes near an end of, if they can be wider there.

    Keys that have no effect beside the trial's other values are left out.
    """
    values: Mapping[str, Value] = {key: study.value(best, key) for key in study.space.keys() - unused(best)}
    for key, dimension in study.space.items():
        if isinstance(dimension, Choices) or key not in values:
            continue
        where = position(dimension, values[key])
        if min(where, 1 - where) <= NEAR and (wider := _wider(study, key, dimension, where >= 0.5)) != dimension:
            side, end = ("lower", dimension.low) if where < 0.5 else ("upper", dimension.high)
            yield AtEnd(key=key, value=float(values[key]), side=side, end=end, wider=wider)


def _scaled(scale: str, value: float) -> float:
    match scale:
        case "log":
            return math.log(value)
        case "log1m":
            return -math.log1p(-value)
        case _:
            return value


def _unscaled(scale: str, scaled: float) -> float:
    match scale:
        case "log":
            return math.exp(scaled)
        case "log1m":
            return -math.expm1(-scaled)
        case _:
            return scaled


def _wider(study: Study, key: str, dimension: FloatRange, upper: bool) -> FloatRange:
    """The range, half as long again at one end, with a round end that is legal for the key."""
    ends = [_scaled(dimension.scale, end) for end in (dimension.low, dimension.high)]
    moved = ends[upper] + (0.5 if upper else -0.5) * (ends[1] - ends[0])
    match dimension.scale:
        case "log":
            end = float(f"{math.exp(moved):.1g}")
        case "log1m":
            end = 1 - float(f"{math.exp(-moved):.1g}")
        case _:
            end = float(f"{moved:.2g}")
    end = float(f"{end:.12g}")
    rule = SEARCHABLE[key]
    if not rule.allows(end):
        end = rule.high if upper else rule.low
    end = _within_schedule(study, key, end)
    beyond = end > dimension.high if upper else end < dimension.low
    if not (rule.allows(end) and beyond):
        return dimension
    low, high = (dimension.low, end) if upper else (end, dimension.high)
    return FloatRange(low=low, high=high, scale=dimension.scale)


def _within_schedule(study: Study, key: str, end: float) -> float:
    """The end, moved so that every warm-up of the search ends before every decay does."""
    if key == "warmup_fraction":
        return min(end, *_ends(study, "decay_fraction"))
    if key == "decay_fraction" and "warmup_fraction" in {*study.space, *study.hparams}:
        return max(end, *_ends(study, "warmup_fraction"))
    return end


def _ends(study: Study, key: str) -> tuple[float, ...]:
    """The lowest and the highest value that trials may have, and the baseline's."""
    dimension = study.space.get(key)
    if isinstance(dimension, FloatRange):
        values: tuple[Value, ...] = (dimension.low, dimension.high)
    else:
        values = dimension.values if dimension else ()
    return tuple(map(float, (*values, getattr(study.baseline, key))))
