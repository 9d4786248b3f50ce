"""Axes follow the search's scales, and a best value near an end of its range has a warning."""

from __future__ import annotations

import pytest

from hpstudy.report.scales import near_ends, position, ticks
from hpstudy.study import Choices, FloatRange

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


def test_halfway_on_a_log1m_axis_is_the_geometric_mean_of_the_distances_to_1() -> None:
    dimension = FloatRange(low=0.9, high=0.999, scale="log1m")
    assert position(dimension, 0.99) == pytest.approx(0.5)
    assert position(Choices(values=("a", "b", "c")), "b") == 0.5


@pytest.mark.parametrize(("lr", "side"), [(1e-4, "lower"), (1.1e-4, "lower"), (1e-3, None), (2.9e-2, "upper")])
def test_a_best_value_near_an_end_of_its_range_has_a_warning(tiny, lr: float, side: str | None) -> None:
    found = list(near_ends(tiny(), {"lr": lr, "beta2": 0.99}))
    assert [f"the {side} end" in line for line in found] == ([True] if side else [])
