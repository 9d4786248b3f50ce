"""What a valid study means: the hyperparameters of trials and baseline, and the values that determine results."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.hparams import GPT3, RULES, halflife_tokens
from hpstudy.study import Choices, FloatRange, Study, Value, changed_keys
from tests.helpers.study_files import illegal_values, parse, text


def test_a_grid_has_as_many_trials_as_points_and_an_empty_search_has_one() -> None:
    grid = {"eps": {"choices": [1e-8, 1e-4]}, "beta1": {"choices": [0.9, 0.8, 0.7]}}
    assert parse(text(search=grid, budget__sampler="grid")).trials == 6
    assert parse(text(search={})).trials == 1
    assert parse(text(search={})).baseline_proposal() == {}


def test_tokens_per_second_are_maximized() -> None:
    assert parse(text(objective__metric="train/tok_per_sec")).directions == ["maximize"]


def test_the_metrics_keep_the_order_of_the_file() -> None:
    assert parse(text()).metrics == ("val/loss",)
    metrics = ["train/tok_per_sec", "val/loss"]
    assert parse(text(objective__metric=metrics)).metrics == tuple(metrics)


def test_a_model_may_be_a_table() -> None:
    model = {"layers": 3, "heads": 2, "width": 32}
    assert asdict(parse(text(trainer__model=model)).spec.model) == model


def test_a_whole_number_and_the_same_float_are_one_value() -> None:
    whole, real = parse(text(hparams__grad_clip=1)), parse(text(hparams__grad_clip=1.0))
    assert json.dumps(whole.resolved()) == json.dumps(real.resolved())


def test_choices_have_the_number_type_of_their_key() -> None:
    study = parse(text(search={"grad_clip": {"choices": [1, 2]}, "clip_mode": {"choices": ["none", "global"]}}))
    assert study.space["grad_clip"] == Choices(values=(1.0, 2.0))
    assert [type(value) for value in study.space["grad_clip"].values] == [float, float]
    assert replace(study, name="y") != study


# Hyperparameters of trials and of the baseline


def test_a_proposal_overrides_hparams_and_hparams_override_gpt3() -> None:
    study = parse(text(hparams__eps=1e-6, hparams__lr=None, baseline__overrides={"beta1": 0.8}))
    trial = study.trial_hparams({"lr": 3e-3}, 600_000)
    assert (trial.lr, trial.eps, trial.beta1, trial.beta2) == (3e-3, 1e-6, 0.9, 0.95)
    baseline = study.baseline_hparams(600_000)
    assert (baseline.lr, baseline.eps, baseline.beta1) == (6e-4, 1e-6, 0.8)


def test_warmup_is_scaled_to_the_run_unless_the_file_or_the_proposal_states_it() -> None:
    ten_steps = 10 * 4096 / 600_000
    scaled = parse(text())
    assert scaled.trial_hparams({"lr": 1e-3}, 600_000).warmup_fraction == pytest.approx(ten_steps)
    assert scaled.baseline_hparams(600_000).warmup_fraction == pytest.approx(ten_steps)
    assert scaled.trial_hparams({"lr": 1e-3}, None).warmup_fraction == 0.01
    fixed = parse(text(hparams__warmup_fraction=0.002))
    assert fixed.trial_hparams({"lr": 1e-3}, 600_000).warmup_fraction == 0.002
    searched = parse(text(search__warmup_fraction={"low": 0.001, "high": 0.2}))
    assert searched.trial_hparams({"lr": 1e-3, "warmup_fraction": 0.003}, 600_000).warmup_fraction == 0.003
    assert searched.baseline_hparams(600_000).warmup_fraction == pytest.approx(ten_steps)


def test_a_scaled_warmup_ends_before_a_short_decay() -> None:
    study = parse(text(trainer__tokens=8192, hparams__decay_fraction=0.2))
    assert illegal_values(study.trial_hparams({"lr": 1e-3}, 8192)) == []


@pytest.mark.parametrize(
    ("batch_tokens", "micro_batch"), [(4096, 16), (128, 1), (3 * 128, 3), (17 * 128, 1), (18 * 128, 9)]
)
def test_a_micro_batch_that_is_not_stated_is_the_largest_divisor_up_to_16(batch_tokens: int, micro_batch: int) -> None:
    study = parse(text(hparams__batch_tokens=batch_tokens))
    assert study.trial_hparams({"lr": 1e-3}, None).micro_batch == micro_batch
    assert study.spec.ramp_multiple == micro_batch


@pytest.mark.parametrize("measured", [4, 32])
def test_a_measured_micro_batch_is_frozen_as_auto_and_does_not_change_a_ramp(measured: int) -> None:
    batches = {"hparams__batch_tokens": None, "search__batch_tokens": {"choices": [4096, 24 * 128]}}
    auto = parse(text(hparams__micro_batch="auto", baseline__overrides={"batch_tokens": 4096}, **batches))
    unset = parse(text(baseline__overrides={"batch_tokens": 4096}, **batches))
    assert auto.auto_micro_batch
    assert not unset.auto_micro_batch
    assert auto.spec == unset.spec
    assert auto.resolved()["hparams.micro_batch"] == "auto"
    assert changed_keys(unset.resolved(), auto.resolved())
    settled = replace(auto, micro_batch_limit=measured)
    assert settled.resolved() == auto.resolved()
    assert settled.baseline_hparams(None).micro_batch == measured
    smaller = settled.trial_hparams({"lr": 1e-3, "batch_tokens": 24 * 128}, None)
    assert smaller.micro_batch == min(measured, 24)  # the largest divisor of 24 sequences up to the measured size


def test_every_micro_batch_that_may_occur_divides_the_batches_of_a_ramp() -> None:
    searched = parse(text(search__micro_batch={"choices": [4, 8]}, objective__metric="train/tok_per_sec"))
    assert searched.spec.ramp_multiple == 16  # the baseline's own 16
    both = parse(
        text(
            hparams={"micro_batch": 3},
            search={"batch_tokens": {"choices": [3072, 6144]}},
            baseline__overrides={"batch_tokens": 4096, "micro_batch": 8},
        )
    )
    assert both.spec.ramp_multiple == 24


@pytest.mark.parametrize(
    ("edits", "largest"),
    [
        ({}, 4096),
        ({"baseline__overrides": {"batch_tokens": 2048}}, 4096),
        ({"baseline__overrides": {"batch_tokens": 8192}}, 8192),
        ({"hparams": {}, "search": {"batch_tokens": {"choices": [4096, 8192]}}}, 2**19),  # the baseline's own
    ],
)
def test_the_largest_batch_is_that_of_any_trial_or_of_the_baseline(edits: dict[str, Any], largest: int) -> None:
    assert parse(text(**edits)).largest_batch_tokens == largest


# The baseline as a trial


def test_the_baseline_is_a_point_of_the_space_up_to_rounding() -> None:
    edge = math.nextafter(6e-4, 1)
    study = parse(text(search__lr={"low": edge, "high": 1e-2}))
    assert study.baseline_proposal() == {"lr": edge}
    assert study.baseline_run_id == "search-0000"


@pytest.mark.parametrize(
    ("edits", "key"),
    [
        ({"search__lr": {"low": 1e-3, "high": 1e-2}}, "lr"),
        ({"search__eps": {"choices": [1e-4, 1e-6]}}, "eps"),
        ({"search__micro_batch": {"choices": [4, 8]}, "objective__metric": "train/tok_per_sec"}, "micro_batch"),
        ({"baseline__overrides": {"eps": 1e-4}}, "eps"),  # the trials have another value
    ],
)
def test_a_baseline_outside_the_space_is_a_run_of_its_own_and_a_warning_names_the_key(
    edits: dict[str, Any], key: str
) -> None:
    study = parse(text(trainer__seed=3, **edits))
    assert study.baseline_proposal() is None
    assert study.baseline_outside() == [key]
    assert study.baseline_run_id == "baseline-s3"
    assert study.warnings == (
        f"[search] {key}: no trial can have the baseline's value, so the baseline runs as phase `baseline` only and is "
        "not trial 0",
    )


# The values that determine results


def test_the_resolved_study_is_flat_json_with_every_default() -> None:
    resolved = parse(text()).resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["trainer.val_tokens"] == 2**16
    assert resolved["trainer.model.layers"] == 2
    assert resolved["search.lr"] == {"low": 1e-4, "high": 1e-2, "scale": "log"}
    assert resolved["budget.sampler.name"] == "tpe"
    assert resolved["hparams.weight_decay"] == 0.1
    assert resolved["baseline.warmup_fraction"] is None
    assert "hparams.lr" not in resolved


# Properties

FLOAT_KEYS = sorted(RULES.keys() - {"clip_mode", "batch_tokens", "micro_batch", "warmup_fraction", "decay_fraction"})


@st.composite
def ranges(draw: st.DrawFn, key: str) -> dict[str, Any]:
    """A legal range of a continuous key."""
    rule = RULES[key]
    upper = min(rule.high, 100.0) - (1e-3 if rule.high_open else 0)
    low = draw(st.floats(min_value=rule.low + 1e-6, max_value=upper / 2))
    high = draw(st.floats(min_value=low * 1.01, max_value=upper))
    scales = ["linear", "log", *(["log1m"] if key.startswith("beta") else [])]
    return {"low": low, "high": high, "scale": draw(st.sampled_from(scales))}


@st.composite
def valid_edits(draw: st.DrawFn) -> dict[str, Any]:
    """Edits of the base file that leave it valid."""
    searched = draw(st.lists(st.sampled_from(FLOAT_KEYS), unique=True, max_size=4))
    sequences = draw(st.integers(min_value=1, max_value=64))
    return {
        "search": {key: draw(ranges(key)) for key in searched},
        "hparams__batch_tokens": 128 * sequences,
        "trainer__evals": draw(st.integers(min_value=1, max_value=100)),
        "trainer__seed": draw(st.integers(min_value=0, max_value=100)),
        "budget": {
            "parallel": draw(st.integers(min_value=1, max_value=9)),
            "sampler": draw(st.sampled_from(["tpe", "gp", "qmc"])),
        },
    }


@settings(max_examples=150, deadline=None)
@given(valid_edits())
def test_trials_and_baseline_of_any_valid_study_are_legal(edits: dict[str, Any]) -> None:
    study = parse(text(**edits))
    assert illegal_values(study.baseline_hparams(study.spec.tokens)) == []
    assert all(isinstance(dimension, FloatRange) for dimension in study.space.values())
    assert study.spec.ramp_multiple <= GPT3.micro_batch
    ends = {key: dimension.low for key, dimension in study.space.items() if isinstance(dimension, FloatRange)}
    assert illegal_values(study.trial_hparams(dict(ends), study.spec.tokens)) == []
    assert changed_keys(study.resolved(), parse(text(**edits)).resolved()) == []


# Coordinates

SCALE_FREE = {
    "lr_over_rule": {"low": 0.1, "high": 10},
    "beta2_halflife": {"choices": [0.01, 0.1]},
    "weight_decay_timescale": {"low": 0.1, "high": 10},
    "batch_fraction": {"low": 0.005, "high": 0.05},
}


def scale_free(**edits: Any) -> Study:
    return parse(
        text(format=4, search=SCALE_FREE, hparams={}, baseline__overrides={"batch_tokens": 4096}, **edits),
    )


def test_a_proposal_in_coordinates_becomes_hyperparameters_of_the_run() -> None:
    study = scale_free()
    proposal: dict[str, Value] = {
        "lr_over_rule": 2.0,
        "beta2_halflife": 0.1,
        "weight_decay_timescale": 0.5,
        "batch_fraction": 0.0066,  # 3960 tokens
    }
    found = study.trial_hparams(proposal, 600_000)
    assert (found.batch_tokens, found.micro_batch) == (4096, 16)
    assert found.lr == pytest.approx(2 * 1.79 * study.spec.model.num_weights**-0.713 * 600_000**0.307)
    assert halflife_tokens(found.beta2, 4096) == pytest.approx(60_000)
    assert 4096 / (found.lr * found.weight_decay) == pytest.approx(300_000)
    values = {key: study.value(found, key) for key in study.space}
    assert values == pytest.approx(proposal | {"batch_fraction": 4096 / 600_000})
    assert values["beta2_halflife"] == 0.1  # a choice, exactly
    assert study.coordinates(found, 600_000) == values
    assert study.raw(proposal) == {key: getattr(found, key) for key in ("lr", "beta2", "weight_decay", "batch_tokens")}


def test_the_same_coordinates_are_the_same_shares_of_a_shorter_run() -> None:
    study = scale_free()
    full = study.trial_hparams({key: getattr(dim, "high", 0.1) for key, dim in study.space.items()}, 600_000)
    values = {key: study.value(full, key, 600_000) for key in study.space}
    shorter = study.trial_hparams(values, 300_000)
    assert shorter.batch_tokens == full.batch_tokens // 2
    assert {key: study.value(shorter, key, 300_000) for key in study.space} == pytest.approx(values)


def test_the_baseline_is_no_trial_of_a_search_in_coordinates() -> None:
    study = parse(text(format=4, search__beta2_halflife={"low": 1e-3, "high": 1}))
    assert study.baseline_proposal() is None
    assert study.baseline_run_id == "baseline-s0"
    assert study.warnings[0] == (
        "[search] beta2_halflife: no trial can have the baseline's value to the last digit, so the baseline runs as "
        "phase `baseline` only and is not trial 0"
    )


def test_a_coordinate_leaves_no_value_of_its_hyperparameter_in_what_a_study_resolves_to() -> None:
    resolved = scale_free().resolved()
    assert "hparams.beta2" not in resolved
    assert resolved["search.lr_over_rule"] == {"low": 0.1, "high": 10.0, "scale": "log"}


def test_the_largest_batch_is_that_of_the_largest_fraction() -> None:
    assert scale_free().largest_batch_tokens == 2**15  # 0.05 of 600,000 tokens is 30,000
