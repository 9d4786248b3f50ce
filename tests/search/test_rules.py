"""Each published rule gives its paper's numbers, and says where it was fitted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.hparams import GPT3, RULES, halflife_tokens
from hpstudy.search.rules import PUBLISHED, Sizes, batch_03, decay_to_zero, half_life, power_lines, sqrt_batch, step_law
from hpstudy.study.schema import COMBINED, RULE_KEYS

BILLION = 10**9
LARGE = Sizes(weights=1_070_000_000, all_weights=1_200_000_000, tokens=100 * BILLION)
SMALL = Sizes(weights=100_096, all_weights=141_056, tokens=300_000)


def at(**values: float) -> dict[str, float]:
    return replace(GPT3, **values)


def test_step_law_gives_the_values_of_its_formula_for_the_papers_largest_model() -> None:
    """exp(ln 1.79 - 0.713 ln 1.07e9 + 0.307 ln 1e11) and exp(ln 0.58 + 0.571 ln 1e11)."""
    assert step_law(LARGE, GPT3) == pytest.approx({"lr": 1.5567e-3, "batch_tokens": 1.107e6}, rel=1e-3)


def test_step_law_scales_lr_and_batch_with_the_papers_exponents() -> None:
    once, more = step_law(LARGE, GPT3), step_law(replace(LARGE, weights=10 * LARGE.weights), GPT3)
    longer = step_law(replace(LARGE, tokens=1000 * BILLION), GPT3)
    assert more["lr"] / once["lr"] == pytest.approx(10**-0.713)
    assert more["batch_tokens"] == once["batch_tokens"]  # the batch follows from the tokens alone
    assert longer["lr"] / once["lr"] == pytest.approx(10**0.307)
    assert longer["batch_tokens"] / once["batch_tokens"] == pytest.approx(10**0.571)


def test_power_lines_gives_adamw_the_papers_timescale() -> None:
    """At 20 tokens a weight tau is 1.08 * 20^-0.527 = 0.2227 of the run."""
    sizes = Sizes(weights=70_000_000, all_weights=111_000_000, tokens=20 * 111_000_000)
    found = power_lines(sizes, at(lr=2e-3, batch_tokens=393_216))["weight_decay"]
    assert 393_216 / (2e-3 * found * sizes.tokens) == pytest.approx(0.2227, rel=1e-3)
    assert power_lines(sizes, at(lr=1e-3, batch_tokens=2 * 393_216))["weight_decay"] == pytest.approx(4 * found)


def test_half_life_gives_the_papers_beta2_at_a_batch_of_one_sequence() -> None:
    """0.95 at 512 sequences of 1,024 tokens is 0.9999 at one."""
    assert round(half_life(LARGE, at(batch_tokens=1024))["beta2"], 4) == 0.9999
    assert half_life(LARGE, GPT3)["beta2"] == pytest.approx(0.95)
    assert half_life(replace(LARGE, tokens=None), GPT3)["beta2"] == pytest.approx(0.95)


def test_a_half_life_is_no_longer_than_a_tenth_of_the_run() -> None:
    found = half_life(SMALL, at(batch_tokens=2048))["beta2"]
    assert halflife_tokens(found, 2048) == pytest.approx(30_000)


def test_rules_for_the_batch_give_gpt3s_lr_at_gpt3s_batch() -> None:
    quarter = at(batch_tokens=2**17)
    assert sqrt_batch(LARGE, GPT3)["lr"] == batch_03(LARGE, GPT3)["lr"] == 6e-4
    assert sqrt_batch(LARGE, quarter)["lr"] == pytest.approx(3e-4)
    assert batch_03(LARGE, quarter)["lr"] == pytest.approx(6e-4 * 0.25**0.3)


def test_decay_to_zero_ends_at_no_learning_rate() -> None:
    assert decay_to_zero(SMALL, GPT3) == {"min_lr_fraction": 0.0, "decay_fraction": 1.0}


@pytest.mark.parametrize("rule", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=["large", "small"])
def test_a_rule_predicts_legal_values_of_its_own_keys(rule, sizes: Sizes) -> None:
    found = rule.predict(sizes, at(batch_tokens=2048))
    assert tuple(found) == rule.keys
    assert all(RULES[key].allows(value) for key, value in found.items())


def test_a_rule_that_takes_tokens_says_nothing_without_them() -> None:
    unknown = replace(LARGE, tokens=None)
    assert [name for name, rule in PUBLISHED.items() if not rule.predict(unknown, GPT3)] == ["step-law", "power-lines"]


def test_combined_rules_speak_about_the_keys_of_their_parts() -> None:
    assert {*PUBLISHED, "combined"} == set(RULE_KEYS)
    assert set(RULE_KEYS["combined"]) == {key for part in COMBINED for key in RULE_KEYS[part]}


def test_a_rule_knows_whether_a_model_and_a_run_are_what_it_was_fitted_to() -> None:
    assert PUBLISHED["step-law"].outside(SMALL) == (True, True)
    assert PUBLISHED["step-law"].outside(replace(LARGE, weights=BILLION)) == (False, False)
    assert PUBLISHED["power-lines"].outside(replace(LARGE, weights=1)) == (False, False)  # it counts the embeddings
    assert PUBLISHED["sqrt-batch"].outside(SMALL) == (False, False)  # its source states no sizes
