"""A figure keeps what a reader must see of long tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hpstudy.report.curves import band, evaluations, gap, shown_runs, spread, thin
from tests.helpers.stores import Ends, results_of, stored


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


def evaluated_run(losses: list[float | None]) -> pd.DataFrame:
    count = len(losses)
    index = [None if loss is None else n for n, loss in enumerate(losses)]
    return pd.DataFrame(
        {
            "step": range(1, count + 1),
            "tokens": [10 * n for n in range(1, count + 1)],
            "train/step_seconds": [0.5] * count,
            "val/index": index,
            "val/loss": losses,
        }
    )


def test_an_evaluation_has_the_tokens_steps_and_seconds_of_training_so_far() -> None:
    found = evaluations(evaluated_run([None, 3.0, None, 2.0]))
    assert found.reset_index().to_dict("list") == {
        "val/index": [1.0, 3.0],
        "tokens": [20.0, 40.0],
        "steps": [2.0, 4.0],
        "loss": [3.0, 2.0],
        "seconds": [1.0, 2.0],
    }


LOSSES = np.array([[3.0, 2.0], [3.2, 2.4], [3.1, 2.5]])


def test_a_band_is_mean_and_deviation_over_runs_at_each_evaluation() -> None:
    found = band([evaluations(evaluated_run([None, *row])) for row in LOSSES])
    assert found["mean"].tolist() == pytest.approx(LOSSES.mean(axis=0))
    assert found["sd"].tolist() == pytest.approx(LOSSES.std(axis=0, ddof=1))
    assert found["tokens"].tolist() == [20, 30]


def test_the_difference_of_two_sides_is_of_their_shared_seeds_with_a_t_interval() -> None:
    theirs = {seed: evaluations(evaluated_run([None, *row])) for seed, row in enumerate(LOSSES)}
    ours = {seed: evaluations(evaluated_run([None, *(row - [0.1 * seed, 0.5])])) for seed, row in enumerate(LOSSES)}
    ours[9] = evaluations(evaluated_run([None, 9.0, 9.0]))  # no partner
    found = gap(ours, theirs, "paired")
    assert found["mean"].tolist() == pytest.approx([-0.1, -0.5])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert found["low"].tolist() == pytest.approx([-0.1 - half, -0.5])
    assert found["high"].tolist() == pytest.approx([-0.1 + half, -0.5])


def test_the_difference_of_single_runs_has_no_interval() -> None:
    one = {0: evaluations(evaluated_run([None, 3.0]))}
    found = gap(one, {0: evaluations(evaluated_run([None, 2.5]))}, "paired")
    assert found["mean"].tolist() == [0.5]
    assert found[["low", "high"]].isna().all().all()


def test_shown_runs_are_those_of_the_first_verdict_though_another_candidate_took_more_seeds(tiny, tmp_path) -> None:
    more = "\n[confirm]\nlooks = [3, 5]\nseeds = [101, 102, 103, 104, 105]\ntop = 2\n"
    study = tiny(more=more, replace={"format = 1": "format = 2"})
    ends: Ends = {"search-0000": 4.0, "search-0001": 3.5, "search-0002": 3.9}
    for place, seed in enumerate((101, 102, 103, 104, 105)):
        wobble = (0.03, -0.03, 0.0, 0.02, -0.02)[place]
        ends[f"baseline-s{seed}"] = 4.0 + wobble
        ends[f"confirm-0002-s{seed}"] = 3.88 - wobble  # twice its noise
        if place < 3:
            ends[f"confirm-0001-s{seed}"] = 3.5 + wobble + 0.001 * place
    results = results_of(study, stored(tmp_path, ends), tmp_path)
    first, second = results.verdict().contrasts
    assert (first.candidate, first.n, second.n) == ("search-0001", 3, 5)
    shown = shown_runs(results)
    assert shown.baseline == ("baseline-s101", "baseline-s102", "baseline-s103")
    assert [len(runs) for runs in shown.candidates.values()] == [3, 5]
