"""Which losses count as divergence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hpstudy.training.divergence import DivergenceWatch
from tests.helpers.samples import record
from tests.helpers.training import run

LIMIT = math.log(256) + 1
RUN = run()
WARMUP = int(RUN.hparams.warmup_fraction * RUN.tokens)


def diverged(watch: DivergenceWatch, loss: float, *, grad_norm: float = 1.0, tokens: int = WARMUP + 1) -> bool:
    return watch.diverged(replace(record(1, loss=loss), grad_norm=grad_norm, tokens=tokens))


def new_watch() -> DivergenceWatch:
    return DivergenceWatch(RUN, 256)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_is_divergence_at_once(bad: float):
    assert diverged(new_watch(), bad, tokens=1)
    assert diverged(new_watch(), 1.0, grad_norm=bad, tokens=1)


def test_twenty_steps_in_a_row_above_the_limit_are_divergence_and_nineteen_are_not():
    watch = new_watch()
    assert [diverged(watch, LIMIT + 0.01) for _ in range(20)] == [False] * 19 + [True]


def test_one_good_step_restarts_the_count():
    watch = new_watch()
    losses = [LIMIT + 1] * 19 + [LIMIT] + [LIMIT + 1] * 19
    assert not any(diverged(watch, loss) for loss in losses)


def test_warm_up_is_not_counted():
    watch = new_watch()
    assert WARMUP > 0
    assert not any(diverged(watch, LIMIT + 1, tokens=WARMUP) for _ in range(100))
