"""The level of each look keeps the whole race to its level: by published tables, and by an independent simulation."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hpstudy.statistics.levels import PATHS, nominal, overall
from hpstudy.study.schema import LOOKS

RACES = 300_000
chances = st.floats(0, 1)


@functools.cache
def smallest() -> np.ndarray:
    """The smallest p value at any of LOOKS of RACES races without a difference, by scipy's t test; seed 77."""
    rng, found = np.random.default_rng(77), []
    for _ in range(RACES // 50_000):
        gaps = rng.normal(size=(50_000, LOOKS[-1]))
        found.append(np.min([stats.ttest_1samp(gaps[:, :n], 0, axis=1).pvalue for n in LOOKS], axis=0))
    return np.concatenate(found)


@pytest.mark.parametrize("level", [0.05, 0.025, 0.05 / 3, 0.01, 0.005])
def test_a_race_errs_with_at_most_its_level_and_not_much_less(level: float) -> None:
    """Both simulations have an error; the product's counts three of its own standard errors as if they were found."""
    errs = np.mean(smallest() <= nominal(level, LOOKS))
    of_mine, of_theirs = (np.sqrt(level * (1 - level) / paths) for paths in (RACES, PATHS))
    assert errs <= level
    assert errs == pytest.approx(level - 3 * of_theirs, abs=3 * np.hypot(of_mine, of_theirs))


@pytest.mark.parametrize("p", [0.0005, 0.005, 0.0126, 0.05, 0.2, 0.5])
def test_the_overall_chance_of_a_p_value_is_no_less_than_that_of_simulated_races(p: float) -> None:
    share = np.mean(smallest() <= p)
    chance = overall(p, LOOKS)
    assert share <= chance
    assert chance == pytest.approx(share, abs=7 * np.sqrt(chance / PATHS))


@pytest.mark.parametrize(("num_looks", "level"), [(2, 0.0294), (3, 0.0221), (4, 0.0182), (5, 0.0158)])
def test_levels_for_many_seeds_are_those_of_pococks_table(num_looks: int, level: float) -> None:
    """Pocock 1977, table 1, for normal data; thousands of seeds make a t test one of normal data."""
    looks = tuple(1000 * look for look in range(1, num_looks + 1))
    assert nominal(0.05, looks) == pytest.approx(level, rel=0.04)


@given(chances, st.integers(3, 1000))
def test_a_single_look_has_the_level_of_the_whole(p: float, seeds: int) -> None:
    assert nominal(p, (seeds,)) == p
    assert overall(p, (seeds,)) == p


@given(st.lists(chances, min_size=2, max_size=2).map(sorted))
def test_a_larger_p_value_is_never_rarer_and_a_larger_level_never_stricter(pair: list[float]) -> None:
    small, large = pair
    assert overall(small, LOOKS) <= overall(large, LOOKS)
    assert nominal(small, LOOKS) <= nominal(large, LOOKS)


@given(st.floats(1e-6, 0.5))
def test_a_p_value_at_the_level_of_a_look_is_at_the_level_of_the_race(level: float) -> None:
    at = nominal(level, LOOKS)
    assert overall(at, LOOKS) <= level * (1 + 1e-12)
    assert level / len(LOOKS) <= at * (1 + 1e-12)
    assert at <= level


@given(chances)
def test_adjusting_for_looks_is_between_the_raw_value_and_bonferronis(p: float) -> None:
    assert p * (1 - 1e-12) <= overall(p, LOOKS) <= min(1, len(LOOKS) * p)


def test_an_additional_look_makes_each_one_stricter() -> None:
    levels = [nominal(0.05, LOOKS[:count]) for count in range(1, len(LOOKS) + 1)]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == len(levels)
