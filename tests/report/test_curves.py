"""What is left of long tables is what a reader must see, and axes follow the search's scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.report.curves import band, spread, thin
from hpstudy.report.scales import near_ends, position, ticks
from hpstudy.study import Choices, FloatRange

DIMENSIONS = [
    FloatRange(low=1e-4, high=6e-3, scale="log"),
    FloatRange(low=0.8, high=0.9999, scale="log1m"),
    FloatRange(low=0.0, high=0.37, scale="linear"),
    FloatRange(low=2e-3, high=2.5e-3, scale="log"),
    FloatRange(low=1e-14, high=1.0, scale="log"),
]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000), st.integers(10, 400))
def test_thinning_keeps_both_ends_and_every_extreme_within_its_bound(values: list[float], most: int) -> None:
    y = pd.Series(values)
    xs, ys = thin(pd.Series(range(len(y))), y, most)
    assert len(xs) <= max(most, 2)
    assert (xs[0], xs[-1]) == (0, len(y) - 1)
    assert (np.diff(xs) > 0).all()
    assert ys.max() == np.float32(y.max())
    assert ys.min() == np.float32(y.min())


def test_thinning_leaves_out_what_is_not_finite() -> None:
    xs, ys = thin(pd.Series([1, 2, 3, 4]), pd.Series([1.0, np.nan, np.inf, 2.0]))
    assert (xs.tolist(), ys.tolist()) == ([1, 4], [1, 2])


@given(st.integers(0, 500), st.integers(2, 80))
def test_a_spread_keeps_order_best_and_worst(count: int, most: int) -> None:
    ranked = [str(n) for n in range(count)]
    kept = spread(ranked, most)
    assert len(kept) == min(count, most) == len(set(kept))
    assert kept == sorted(kept, key=int)
    assert not ranked or (kept[0], kept[-1]) == (ranked[0], ranked[-1])


def test_a_band_is_mean_and_deviation_over_runs_at_each_evaluation() -> None:
    losses = np.array([[3.0, 2.0], [3.2, 2.4], [3.1, 2.5]])
    runs = [
        pd.DataFrame({"tokens": [5, 10, 20], "val/index": [None, 1, 2], "val/loss": [None, *row]}) for row in losses
    ]
    found = band(runs)
    assert found["mean"].tolist() == pytest.approx(losses.mean(axis=0))
    assert found["sd"].tolist() == pytest.approx(losses.std(axis=0, ddof=1))
    assert found["tokens"].tolist() == [10, 20]


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


@pytest.mark.parametrize(("lr", "warned"), [(1e-4, "lower"), (1.1e-4, "lower"), (1e-3, None), (2.9e-2, "upper")])
def test_a_best_value_near_an_end_of_its_range_is_warned_of(tiny, lr: float, warned: str | None) -> None:
    found = list(near_ends(tiny(), {"lr": lr, "beta2": 0.99}))
    assert [f"the {warned} end" in line for line in found] == ([True] if warned else [])
