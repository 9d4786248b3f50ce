"""The axis of a searched hyperparameter: the search's scale, its ticks, and values near its ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hpstudy.study import Choices, Dimension, Study

NEAR = 0.05  # of the range


def position(dimension: Dimension, value: float | str) -> float:
    """A value's position between low (0) and high (1) on the search's scale; choices are placed in order."""
    if isinstance(dimension, Choices):
        return dimension.values.index(value) / (len(dimension.values) - 1)
    scaled, low, high = (_scaled(dimension.scale, float(v)) for v in (value, dimension.low, dimension.high))
    return (scaled - low) / (high - low)


def _scaled(scale: str, value: float) -> float:
    match scale:
        case "log":
            return math.log(value)
        case "log1m":
            return -math.log1p(-value)
        case _:
            return value


def ticks(dimension: Dimension, most: int) -> list[float | str]:
    """At most `most` round values along a range; of choices all."""
    if isinstance(dimension, Choices):
        return list(dimension.values)
    low, high = dimension.low, dimension.high
    if dimension.scale == "linear":
        step = 10 ** math.floor(math.log10(high - low))
        step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if (high - low) / s <= most)
        return [round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    a, b = (1 - high, 1 - low) if dimension.scale == "log1m" else (low, high)
    decades = [10.0**e for e in range(math.floor(math.log10(a)), math.ceil(math.log10(b)) + 1)]
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        marks = [m * d for d in decades for m in mantissas if a * 0.999 <= m * d <= b * 1.001]
        if len(marks) <= most:
            break
    marks = marks[:: math.ceil(len(marks) / most)] if len(marks) >= 2 else [a, b]
    return [float(f"{1 - mark:.10g}") if dimension.scale == "log1m" else mark for mark in marks]


def tick_text(value: float | str) -> str:
    """A tick's label: 0.001 and 3e-05, a choice as it is."""
    return value if isinstance(value, str) else f"{value:.6g}"


def near_ends(study: Study, best: Mapping[str, float | str]) -> Iterator[str]:
    """A warning for each range in which the best trial is within NEAR of an end: the optimum may be outside."""
    for key, dimension in study.space.items():
        if isinstance(dimension, Choices):
            continue
        where = position(dimension, best[key])
        if min(where, 1 - where) <= NEAR:
            side, end = ("lower", dimension.low) if where < 0.5 else ("upper", dimension.high)
            yield (
                f"{key}: the best trial's {best[key]:.4g} is within {NEAR:.0%} of the {side} end of its range, "
                f"{end:g}; a wider range may hold a better one"
            )
