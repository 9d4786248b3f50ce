"""A figure keeps what a reader must see of long tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.report.curves import band, spread, thin


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000), st.integers(10, 400))
def test_thinning_keeps_both_ends_and_every_extreme_within_its_bound(values: list[float], most: int) -> None:
    y = pd.Series(values)
    xs, ys = thin(pd.Series(range(len(y))), y, most)
    assert len(xs) <= max(most, 2)
    assert (xs[0], xs[-1]) == (0, len(y) - 1)
    assert (np.diff(xs) > 0).all()
    assert ys.max() == np.float32(y.max())
    assert ys.min() == np.float32(y.min())


def test_thinning_leaves_out_points_that_are_not_finite() -> None:
    xs, ys = thin(pd.Series([1, 2, 3, 4]), pd.Series([1.0, np.nan, np.inf, 2.0]))
    assert (xs.tolist(), ys.tolist()) == ([1, 4], [1, 2])


@given(st.integers(0, 500), st.integers(2, 80))
def test_a_spread_keeps_the_order_the_best_and_the_worst(count: int, most: int) -> None:
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
