"""GPT-3's values and each key's legal range, against the paper; conversions, against computations by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.hparams import (
    GPT3,
    RULES,
    decay_timescale_steps,
    derived,
    halflife_tokens,
    scaled_warmup_fraction,
)
from tests.helpers.study_files import illegal_values


def test_gpt3_has_the_values_of_the_paper() -> None:
    assert (GPT3.lr, GPT3.beta1, GPT3.beta2, GPT3.eps) == (6e-4, 0.9, 0.95, 1e-8)
    assert (GPT3.weight_decay, GPT3.grad_clip, GPT3.clip_mode) == (0.1, 1.0, "global")
    assert GPT3.batch_tokens == 524_288
    assert GPT3.warmup_fraction * 300e9 == pytest.approx(375e6)
    assert GPT3.decay_fraction * 300e9 == pytest.approx(260e9)
    assert GPT3.min_lr_fraction == 0.1
    assert GPT3.batch_ramp_fraction * 300e9 == pytest.approx(4e9)
    assert GPT3.batch_ramp_start * GPT3.batch_tokens == 32_768
    assert illegal_values(GPT3) == []


@pytest.mark.parametrize(("beta", "tokens"), [(0.9, 3.45e6), (0.95, 7.08e6), (0.98, 17.99e6), (0.99, 36.16e6)], ids=str)
def test_half_lives_at_gpt3s_batch_agree_with_the_published_table(beta: float, tokens: float) -> None:
    assert halflife_tokens(beta, 2**19) == pytest.approx(tokens, rel=2e-3)


@given(st.floats(min_value=0.01, max_value=0.9999), st.integers(min_value=1, max_value=2**22))
def test_a_gradient_has_half_its_weight_after_one_half_life(beta: float, tokens_per_step: int) -> None:
    steps = halflife_tokens(beta, tokens_per_step) / tokens_per_step
    assert beta**steps == pytest.approx(0.5)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_half_life_needs_a_beta_between_0_and_1(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\)"):
        halflife_tokens(beta, 4096)


def test_the_decay_timescale_is_the_inverse_of_lr_times_weight_decay() -> None:
    assert decay_timescale_steps(6e-4, 0.1) == pytest.approx(16_666.7, rel=1e-5)
    assert decay_timescale_steps(6e-4, 0.0) == math.inf
    assert derived(GPT3)["decay_timescale_steps"] == pytest.approx(16_666.7, rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "batch_tokens", "fraction"),
    [
        (1_000_000, 4096, 0.04096),  # 10 steps of 244
        (10_000_000_000, 524_288, 0.01),  # 1% is more than 10 steps and more than the paper's 0.125%
        (None, 4096, 0.01),  # a budget in seconds before its tokens are known
        (40_960, 4096, 260 / 300),  # a run of 10 steps: at most the decay
    ],
)
def test_a_scaled_warmup_has_at_least_ten_steps_and_one_percent_of_the_run(
    tokens: int | None, batch_tokens: int, fraction: float
) -> None:
    assert scaled_warmup_fraction(tokens, batch_tokens) == pytest.approx(fraction)


@given(st.integers(min_value=1, max_value=10**12), st.integers(min_value=1, max_value=2**22))
def test_a_scaled_warmup_is_always_legal(tokens: int, batch_tokens: int) -> None:
    assert illegal_values(replace(GPT3, warmup_fraction=scaled_warmup_fraction(tokens, batch_tokens))) == []


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("lr", 0, "must be in (0, inf), but got 0"),
        ("lr", math.nan, "must be in (0, inf), but got nan"),
        ("lr", math.inf, "must be in (0, inf), but got inf"),
        ("lr", "6e-4", "must be a number, but got '6e-4'; write 0.0006"),
        ("weight_decay", "5%", "must be a number, but got '5%'; write 0.05"),
        ("weight_decay", "1__0,000.5_", "must be a number, but got '1__0,000.5_'"),
        ("batch_tokens", "1e300", "must be a whole number, but got '1e300'"),
        ("weight_decay", "some", "must be a number, but got 'some'"),
        ("weight_decay", False, "must be a number, but got False"),
        ("warmup_fraction", 5, "must be in [0, 1], but got 5; it is a share of the run's tokens; write 0.05"),
        ("beta2", 95, "must be in (0, 1), but got 95; write 0.95"),
        ("lr", True, "must be a number, but got True"),
        ("beta1", 1.0, "must be in (0, 1), but got 1.0; such as 0.9 or 0.95"),
        ("weight_decay", -0.1, "must be in [0, inf), but got -0.1"),
        ("warmup_fraction", 1.5, "must be in [0, 1], but got 1.5; it is a share of the run's tokens"),
        ("micro_batch", 0, "must be in [1, inf), but got 0"),
        ("batch_tokens", 4096.0, "must be a whole number, but got 4096.0; write 4_096"),
        ("batch_tokens", "4k", "must be a whole number, but got '4k'; write 4_000"),
        ("batch_tokens", 0.5, "must be a whole number, but got 0.5"),
        ("clip_mode", "norm", "must be one of global, per_tensor, none, but got 'norm'"),
    ],
)
def test_the_problem_of_an_illegal_value_states_its_rule(key: str, value: object, problem: str) -> None:
    assert RULES[key].problem(value) == problem


@pytest.mark.parametrize("key", RULES)
def test_every_value_of_gpt3_is_legal(key: str) -> None:
    assert RULES[key].problem(asdict(GPT3)[key]) is None


@pytest.mark.parametrize(("lr", "decay"), [(1e-300, 1e-300), (5e-324, 1.0), (1e-3, 0.0)])
def test_a_decay_too_small_for_a_float_has_an_infinite_timescale(lr: float, decay: float) -> None:
    assert decay_timescale_steps(lr, decay) == math.inf
