"""The axes of a search have round ticks within their range."""

from __future__ import annotations

import pytest

from hpstudy.analysis.ranges import position
from hpstudy.report.scales import ticks
from hpstudy.study import FloatRange

DIMENSIONS = [
    FloatRange(low=1e-4, high=6e-3, scale="log"),
    FloatRange(low=0.8, high=0.9999, scale="log1m"),
    FloatRange(low=0.0, high=0.37, scale="linear"),
    FloatRange(low=2e-3, high=2.5e-3, scale="log"),
    FloatRange(low=1e-14, high=1.0, scale="log"),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=str)
def test_a_range_runs_from_0_to_1_and_has_two_to_six_ticks_inside(dimension: FloatRange) -> None:
    assert position(dimension, dimension.low) == pytest.approx(0)
    assert position(dimension, dimension.high) == pytest.approx(1)
    marks = ticks(dimension, most=6)
    places = [position(dimension, mark) for mark in marks]
    assert 2 <= len(marks) <= 6
    assert all(-0.01 <= place <= 1.01 for place in places)
