"""The plan of a run against the founding notebook's formulas, at their corners."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.hparams import GPT3
from hpstudy.schedule import extent, learning_rate, plan, ramped_batch

BATCH = 1024
STEADY = replace(GPT3, lr=1.0, batch_tokens=BATCH, micro_batch=1, batch_ramp_fraction=0.0)


def in_steps(it: int, warmup: int, decay: int, lr: float = 1.0, floor: float = 0.1) -> float:
    """The schedule as the founding notebook states it, `it` counted from 0."""
    if it < warmup:
        return lr * (it + 1) / warmup
    if it > decay:
        return lr * floor
    ratio = (it - warmup) / (decay - warmup)
    return lr * floor + 0.5 * (1 + math.cos(math.pi * ratio)) * (lr - lr * floor)


def test_lr_in_tokens_is_the_notebooks_lr_in_steps():
    hparams = replace(STEADY, warmup_fraction=0.1, decay_fraction=0.8)
    rates = [step.lr for step in plan(hparams, budget=100 * BATCH, unit=BATCH, evals=1)]
    assert rates == pytest.approx([in_steps(it, 10, 80) for it in range(100)], rel=1e-12)


def test_lr_at_the_corners():
    hparams = replace(STEADY, warmup_fraction=0.1, decay_fraction=0.8)
    budget = 100 * BATCH

    def at(it: int) -> float:
        return learning_rate(hparams, it * BATCH, BATCH, budget)

    assert at(0) == pytest.approx(0.1)  # (0 + 1) / 10
    assert at(9) == pytest.approx(1.0)  # the last step of warm-up
    assert at(10) == pytest.approx(1.0)  # the first of the cosine
    assert at(45) == pytest.approx(0.55)  # half-way between peak and floor
    assert at(80) == pytest.approx(0.1)  # the floor
    assert at(99) == pytest.approx(0.1)  # constant to the end


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(replace(STEADY, warmup_fraction=0.0), 0, BATCH, 100 * BATCH) == pytest.approx(1.0)


def test_gpt3_itself_warms_up_over_715_steps_and_decays_over_260_billion_tokens():
    steady = replace(GPT3, batch_ramp_fraction=0.0)
    budget = 300_000_000_000
    assert learning_rate(steady, 714 * 2**19, 2**19, budget) < 6e-4
    assert learning_rate(steady, 716 * 2**19, 2**19, budget) == pytest.approx(6e-4)
    assert learning_rate(steady, 260_000_000_000, 2**19, budget) == pytest.approx(6e-5)


@given(st.integers(1, 300_000), st.sampled_from([256, 1024, 4096]))
def test_a_steady_run_has_floor_of_tokens_by_batch_steps(budget: int, batch: int):
    steps = list(plan(replace(STEADY, batch_tokens=batch), budget=budget, unit=batch, evals=5))
    assert len(steps) == budget // batch
    assert all(step.tokens == step.step * batch for step in steps)


def test_ramp_grows_linearly_from_its_start_to_the_full_batch():
    hparams = replace(GPT3, batch_tokens=16_384, batch_ramp_fraction=0.5, batch_ramp_start=1 / 16)
    budget = 1_000_000
    assert ramped_batch(hparams, 0, budget, 1024) == 1024  # 16384 / 16
    assert ramped_batch(hparams, 250_000, budget, 1024) == 8192  # (1/16 + 15/16 * 1/2) * 16384 = 8704, rounded down
    assert ramped_batch(hparams, 499_999, budget, 1024) == 15_360
    assert ramped_batch(hparams, 500_000, budget, 1024) == 16_384


def test_ramp_rounds_to_no_ramp_when_one_unit_is_the_batch():
    hparams = replace(GPT3, batch_tokens=4096)
    assert {s.batch_tokens for s in plan(hparams, budget=400_000, unit=4096, evals=4)} == {4096}


@given(
    st.integers(20_000, 2_000_000),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.integers(1, 30),
    st.sampled_from([512, 1024, 2048]),
)
def test_a_plan_is_whole_growing_batches_within_the_budget_and_evaluates_at_its_end(
    budget: int, fraction: float, start: float, evals: int, unit: int
):
    hparams = replace(STEADY, batch_tokens=8192, batch_ramp_fraction=fraction, batch_ramp_start=start)
    steps = list(plan(hparams, budget=budget, unit=unit, evals=evals))
    assert steps
    assert [s.step for s in steps] == list(range(1, len(steps) + 1))
    assert all(b.tokens_before == a.tokens for a, b in pairwise(steps))
    assert all(s.batch_tokens % unit == 0 and 0 < s.batch_tokens <= 8192 for s in steps)
    assert all(a.batch_tokens <= b.batch_tokens for a, b in pairwise(steps))
    assert steps[-1].tokens <= budget
    assert extent(hparams, budget=budget, unit=unit) == (len(steps), steps[-1].tokens)
    points = [s.eval_index for s in steps if s.eval_index is not None]
    assert points == sorted(set(points))
    assert points[-1] == evals == steps[-1].eval_index


def test_each_evaluation_is_at_the_first_step_that_reaches_its_point():
    steps = list(plan(STEADY, budget=10 * BATCH, unit=BATCH, evals=4))  # points at 2.5, 5, 7.5 and 10 batches
    assert {s.step: s.eval_index for s in steps if s.eval_index} == {3: 1, 5: 2, 8: 3, 10: 4}
