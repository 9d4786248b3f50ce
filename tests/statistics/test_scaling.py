"""Optima of rungs, laws over rungs, and the largest stable learning rate."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import binom

from hpstudy.statistics.scaling import BEND_LEVEL, boundary, law, least_trials, optimum
from tests.bench.ladder import KEYS, simulated

LOW, HIGH = np.full(2, -1.7), np.full(2, 1.7)
BEST = np.array([0.6, -0.4])
SIZES = np.log(np.geomspace(1e5, 5e6, 5))[:, None]


def points(num_trials: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOW, HIGH, (num_trials, 2))


def bowl(points_NK: np.ndarray) -> np.ndarray:
    return 3.0 + 0.1 * np.square(points_NK - BEST).sum(axis=1)


def test_a_quadratic_surface_without_noise_gives_its_lowest_point():
    found = optimum(points(), bowl(points()), LOW, HIGH, noise=0.0)
    assert found is not None
    assert found.centre == pytest.approx(BEST, abs=0.03)
    assert found.loss == pytest.approx(3.0, abs=0.01)
    assert found.curvature == pytest.approx([0.2, 0.2], rel=0.1)
    assert found.bent.all()
    assert (found.error < 0.15).all()


def test_a_cliff_beside_the_optimum_moves_it_by_less_than_its_error():
    points_NK = points(32)
    cliff_N = np.where(points_NK[:, 0] > BEST[0] + np.log(2), 2.0, 0.0)
    found = optimum(points_NK, bowl(points_NK) + cliff_N, LOW, HIGH, noise=0.01)
    assert found is not None
    assert (np.abs(found.centre - BEST) < 2 * found.error).all()
    assert found.centre == pytest.approx(BEST, abs=0.25)


def test_a_key_whose_loss_falls_to_an_end_of_the_box_is_not_bent():
    points_NK = points()
    losses_N = 3.0 + 0.1 * (points_NK[:, 0] - BEST[0]) ** 2 + 0.04 * points_NK[:, 1]
    found = optimum(points_NK, losses_N, LOW, HIGH, noise=0.005)
    assert found is not None
    assert found.bent.tolist() == [True, False]
    assert found.centre[1] == LOW[1]
    assert found.error[1] > 0.3  # it may lie beyond


def test_a_flat_key_is_seldom_called_bent_and_has_an_error_of_half_a_box():
    """100 studies, seed 0: more than 20% of flat keys are called bent in 0.1%, if 10% are."""
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        points_NK = rng.uniform(LOW, HIGH, (24, 2))
        losses_N = 3.0 + 0.1 * (points_NK[:, 0] - BEST[0]) ** 2 + 0.01 * rng.standard_normal(24)
        found.append(optimum(points_NK, losses_N, LOW, HIGH, noise=0.01, resamples=100))
    assert np.mean([best.bent for best in found], axis=0)[1] <= 0.2
    assert np.median([best.error for best in found], axis=0)[1] > 0.8


def test_the_optimum_and_its_draws_lie_in_the_box():
    found = optimum(points(), points().sum(axis=1), LOW, HIGH, noise=None)
    assert found is not None
    assert (found.draws >= LOW - 1e-9).all()
    assert (found.draws <= HIGH + 1e-9).all()
    assert found.centre == pytest.approx(LOW)


def test_too_few_trials_or_equal_losses_have_no_optimum():
    few = least_trials(2) - 1
    assert optimum(points(few), bowl(points(few)), LOW, HIGH, noise=None) is None
    assert optimum(points(), np.ones(24), LOW, HIGH, noise=None) is None


def test_the_same_trials_give_the_same_optimum():
    first, second = (optimum(points(), bowl(points()), LOW, HIGH, noise=0.01) for _ in range(2))
    for field in fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name))


def test_rungs_on_a_line_give_the_line():
    found = law(SIZES, 2.0 - 0.3 * SIZES[:, 0], np.full(5, 0.1))
    assert found.slope == pytest.approx([-0.3])
    assert found.at(np.array([20.0]))[0] == pytest.approx(2.0 - 0.3 * 20)
    assert found.scatter == 0
    assert not found.bent


def test_two_sizes_that_vary_apart_have_a_slope_each():
    sizes_RM = np.random.default_rng(0).uniform(10, 20, (6, 2))
    found = law(sizes_RM, 1.0 - 0.7 * sizes_RM[:, 0] + 0.3 * sizes_RM[:, 1], np.full(6, 0.1))
    assert found.slope == pytest.approx([-0.7, 0.3])


def test_a_size_that_follows_the_other_changes_no_prediction():
    both = np.column_stack([SIZES, SIZES + np.log(20)])
    means_R, errors_R = 2.0 - 0.3 * SIZES[:, 0], np.full(5, 0.1)
    apart = law(both, means_R, errors_R).at(np.array([20.0, 20 + np.log(20)]))
    assert apart == pytest.approx(law(SIZES, means_R, errors_R).at(np.array([20.0])))


@pytest.mark.parametrize("num_sizes", [0, 1])
def test_one_rung_gives_a_constant(num_sizes: int):
    found = law(SIZES[:1, :num_sizes], np.array([-6.0]), np.array([0.1]))
    mean, low, high = found.at(np.full(num_sizes, 20.0))
    assert mean == pytest.approx(-6.0)
    assert high - low > 1.0  # Student's t with one degree of freedom
    assert found.bend is None


def test_intervals_hold_a_new_rung_that_scatters_as_the_others():
    """1,500 laws, seed 0: fewer than 88% if the share is 90%, in 0.5%; the scatter is that of the errors."""
    rng, held = np.random.default_rng(0), 0
    errors_R, far = np.array([0.15, 0.2, 0.3, 0.35, 0.35]), np.array([SIZES[-1, 0] + np.log(30)])
    for _ in range(1500):
        scatter = 0.2 * rng.standard_normal(6)
        means_R = 0.1 * SIZES[:, 0] + scatter[:5] + errors_R * rng.standard_normal(5)
        _, low, high = law(SIZES, means_R, errors_R).at(far)
        held += low <= 0.1 * far[0] + scatter[5] <= high
    assert held / 1500 > 0.88


def test_a_straight_law_is_seldom_flagged_and_a_bend_of_five_errors_is():
    """400 laws each, seed 0: more than 15% of false bends at a level of 10% in 0.1%."""
    rng, errors_R = np.random.default_rng(0), np.full(5, 0.2)
    noises = errors_R * rng.standard_normal((400, 5))
    straight = [law(SIZES, 0.1 * SIZES[:, 0] + noise_R, errors_R).bent for noise_R in noises]
    bend_R = np.array([0, 0, 0, 1.0, 2.0])
    assert np.mean(straight) < 1.5 * BEND_LEVEL
    assert np.mean([law(SIZES, bend_R + noise_R, errors_R).bent for noise_R in noises]) > 0.95


def test_intervals_of_simulated_ladders_hold_the_optimum():
    """60 ladders, seed 0: a key fails in 0.4% if its share is 90%, so any of six does in at most 2%."""
    least = binom.ppf(0.004, 60, 0.9) / 60
    found = simulated(60, seed=0).iloc[: len(KEYS)]
    assert (found[["held 3x", "held 30x"]] >= least).all(axis=None)


def test_the_boundary_lies_between_stable_and_unstable_trials():
    log_lr_N = np.linspace(-8, -3, 16)
    found = boundary(log_lr_N, log_lr_N > -4.5)
    assert found is not None
    assert found.bounded
    assert found.value == pytest.approx(-4.5, abs=2 * found.error)
    assert 0.05 < found.error < 0.4


def test_without_an_unstable_trial_the_boundary_lies_above_all():
    log_lr_N = np.linspace(-8, -3, 16)
    found = boundary(log_lr_N, np.zeros(16, bool))
    assert found is not None
    assert not found.bounded
    assert found.value == -3
    assert boundary(log_lr_N, np.ones(16, bool)) is None
