"""Which losses count as divergence."""

from __future__ import annotations

import math

import pytest

from hpstudy.training.divergence import DivergenceWatch

LIMIT = math.log(256) + 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_is_divergence_at_once(bad: float):
    assert DivergenceWatch(256).diverged(loss=bad, grad_norm=1.0, warming_up=True)
    assert DivergenceWatch(256).diverged(loss=1.0, grad_norm=bad, warming_up=True)


def test_twenty_steps_in_a_row_above_the_limit_are_divergence_and_nineteen_are_not():
    watch = DivergenceWatch(256)
    seen = [watch.diverged(loss=LIMIT + 0.01, grad_norm=1.0, warming_up=False) for _ in range(20)]
    assert seen == [False] * 19 + [True]


def test_one_good_step_restarts_the_count():
    watch = DivergenceWatch(256)
    losses = [LIMIT + 1] * 19 + [LIMIT] + [LIMIT + 1] * 19
    assert not any(watch.diverged(loss=loss, grad_norm=1.0, warming_up=False) for loss in losses)


def test_warm_up_is_not_counted():
    watch = DivergenceWatch(256)
    assert not any(watch.diverged(loss=LIMIT + 1, grad_norm=1.0, warming_up=True) for _ in range(100))
