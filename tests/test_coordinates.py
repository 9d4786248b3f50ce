"""Coordinates: each has the value that its definition gives by hand, and converts both ways."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.coordinates import RunSize, batch_of, coordinate, raw_values, step_law_lr
from hpstudy.hparams import COORDINATES, GPT3, RAW_KEY, RULES, HParams

SIZE = RunSize(weights=100_000, tokens=2**20, batch_unit=1024)
START = replace(GPT3, batch_tokens=2**13)  # 1/128 of the run


def converted(values: dict[str, float], size: RunSize = SIZE) -> HParams:
    return HParams(**raw_values({**asdict(START), **values}, size))


def test_every_coordinate_stands_for_a_hyperparameter_of_its_own() -> None:
    assert set(RAW_KEY) == set(COORDINATES)
    assert len(set(RAW_KEY.values()) & set(RULES)) == len(COORDINATES)
    assert not set(COORDINATES) & set(RULES)


def test_values_that_hold_no_coordinate_stay_as_they_are() -> None:
    assert converted({}) == START


def test_lr_over_rule_multiplies_step_laws_lr() -> None:
    law = 1.79 * 100_000**-0.713 * (2**20) ** 0.307
    assert step_law_lr(100_000, 2**20) == law
    assert converted({"lr_over_rule": 0.5}).lr == 0.5 * law


def test_a_half_life_of_one_step_is_a_beta_of_one_half() -> None:
    assert converted({"beta1_halflife": 1 / 128}).beta1 == 0.5
    assert converted({"beta2_halflife": 2 / 128}).beta2 == math.sqrt(0.5)


def test_a_timescale_of_the_run_shrinks_weights_to_1_by_e_in_its_128_steps() -> None:
    found = converted({"weight_decay_timescale": 1.0})
    assert 1 / (found.lr * found.weight_decay) == pytest.approx(128, rel=1e-12)
    assert coordinate("weight_decay_timescale", replace(START, weight_decay=0.0), SIZE) == math.inf


@pytest.mark.parametrize(
    ("fraction", "sequences"), [(1 / 128, 8), (1.4 / 128, 8), (1.42 / 128, 16), (1e-9, 1), (1.0, 1024)]
)
def test_a_batch_is_the_nearest_power_of_two_of_sequences_on_a_log_scale(fraction: float, sequences: int) -> None:
    assert batch_of(fraction, SIZE) == converted({"batch_fraction": fraction}).batch_tokens == sequences * 1024


def test_a_batch_is_never_more_than_the_run() -> None:
    assert batch_of(1.0, replace(SIZE, tokens=2**20 - 1)) == 2**19


def test_other_coordinates_take_the_batch_and_the_lr_that_coordinates_give() -> None:
    found = converted(
        {"batch_fraction": 1 / 64, "lr_over_rule": 2.0, "beta2_halflife": 1 / 64, "weight_decay_timescale": 0.5}
    )
    assert (found.batch_tokens, found.beta2) == (2**14, 0.5)
    assert found.weight_decay == pytest.approx(1 / (32 * 2 * step_law_lr(SIZE.weights, SIZE.tokens)), rel=1e-12)


SIZES = st.builds(
    lambda weights, steps, unit: RunSize(weights=weights, tokens=steps * unit, batch_unit=unit),
    st.integers(10**3, 10**12),
    st.integers(64, 10**9),
    st.sampled_from([16, 1024, 2048]),
)
VALUES = st.fixed_dictionaries(
    {
        "lr_over_rule": st.floats(1e-3, 1e3),
        "beta1_halflife": st.floats(0.01, 10.0),
        "beta2_halflife": st.floats(0.01, 10.0),
        "weight_decay_timescale": st.floats(1e-3, 1e3),
        "batch_fraction": st.floats(1e-6, 0.5),
    }
)


@given(VALUES, SIZES)
def test_coordinates_come_back_from_the_hyperparameters_that_they_give(values: dict[str, float], size: RunSize) -> None:
    found = converted(values, size)
    for key in values:
        again = coordinate(key, found, size)
        if key == "batch_fraction":
            assert batch_of(again, size) == found.batch_tokens
        else:  # of a beta near 1 the distance to 1 has few digits
            assert again == pytest.approx(values[key], rel=1e-5 if "half" in key else 1e-9)


@given(SIZES)
def test_hyperparameters_come_back_from_their_coordinates(size: RunSize) -> None:
    hparams = replace(GPT3, batch_tokens=size.batch_unit * 32)
    values = {key: coordinate(key, hparams, size) for key in COORDINATES}
    found = converted(values, size)
    for raw in RAW_KEY.values():
        assert getattr(found, raw) == pytest.approx(getattr(hparams, raw), rel=1e-9)
