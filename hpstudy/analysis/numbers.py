"""How numbers are written for people."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any


def short(value: float) -> str:
    """3,451,204 as 3.45M: three digits and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # 999,600 rounds to 1M
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def plain(value: Any) -> str:
    """A value with four digits (five between 0.9 and 1), text as it is, "-" for a missing value.

    Whole numbers below a million are exact: 8,192.
    """
    import pandas as pd  # here: takes half a second, and the live view needs none of it

    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and abs(int(value)) < 1e6:
        return f"{int(value):,}"
    if isinstance(value, float) and math.isfinite(value) and abs(value) < 1e4:
        return f"{value:.5g}" if 0.9 < value < 1 else f"{value:.4g}"  # a beta is known by its digits after the nines
    return short(value) if math.isfinite(value) else "infinite"


def rough(value: float) -> str:
    """A value with two digits: 0.0021, 560, 20k. Between 0.9 and 1 its distance to 1 has them: 0.9954."""
    if 0.9 < value < 1:
        return f"{value:.{decimals(1 - value)}f}"
    two = f"{value:.2g}"
    return short(float(two)) if abs(value) >= 99.5 and math.isfinite(value) else two


def duration(seconds: float) -> str:
    """`42s`, `3m 20s`, `1h 05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def p_text(p: float) -> str:
    """`p = 0.0023`, or `p < 0.0001`."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def decimals(width: float) -> int:
    """The decimals that show two digits of an error."""
    return min(max(1 - math.floor(math.log10(width)), 0), 6) if width > 0 else 6


def interval_decimals(low: float, high: float) -> int:
    """The decimals that show two digits of an interval's half width."""
    return decimals((high - low) / 2)


def with_sign(value: float, digits: int) -> str:
    """A difference with its sign and so many decimals, with a real minus: −0.938."""
    return f"{value:+.{digits}f}".replace("-", "−")


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
