"""The axis of a searched hyperparameter: its ticks, and how they are written."""

from __future__ import annotations

import math

from hpstudy.study import Choices, Dimension


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
