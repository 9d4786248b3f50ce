"""A study's space as Optuna's distributions: values survive the conversion and stay in range."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution

from hpstudy.search import Search
from hpstudy.search.space import decode, distributions, encode
from hpstudy.study import Choices, FloatRange, OrderedChoices
from tests.helpers.search import tell_all, toy_study

ENDS = {
    "linear": st.tuples(st.floats(-10, 10), st.floats(1e-3, 10)).map(lambda t: (t[0], t[0] + t[1])),
    "log": st.tuples(st.floats(1e-9, 1), st.floats(1.01, 1e4)).map(lambda t: (t[0], t[0] * t[1])),
    "log1m": st.tuples(st.floats(1e-6, 0.5), st.floats(1e-5, 0.49)).map(lambda t: (1 - t[0] - t[1], 1 - t[0])),
}


@given(data=st.data(), scale=st.sampled_from(list(ENDS)))
@settings(deadline=None)
def test_a_value_survives_the_conversion_to_optunas_parameters(data, scale):
    low, high = data.draw(ENDS[scale])
    space = {"lr": FloatRange(low=low, high=high, scale=scale), "clip_mode": Choices(values=("global", "none"))}
    value = data.draw(st.floats(low, high))
    params = encode(space, {"lr": value, "clip_mode": "none"})
    assert optuna.trial.create_trial(value=0.0, params=params, distributions=distributions(space)).params == params
    decoded = decode(space, params)
    assert decoded["clip_mode"] == "none"
    assert low <= decoded["lr"] <= high
    assert decoded["lr"] == pytest.approx(value, rel=0, abs=2**-53 if scale == "log1m" else 0)
    assert scale != "log1m" or value < 0.5 or decoded["lr"] == value


@given(low=st.floats(0.5, 0.9), width=st.floats(0.01, 0.09), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_value_that_optuna_samples_is_within_the_range(low: float, width: float, seed: int):
    space = {"beta1": FloatRange(low=low, high=low + width, scale="log1m")}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    assert low <= decode(space, study.ask(distributions(space)).params)["beta1"] <= low + width


def test_betas_are_drawn_log_uniform_in_one_minus_beta(tmp_path: Path):
    # 1 - beta2 in [2e-4, 2e-2]: half of its logarithms are below 2e-3, which is 9% of the range of beta2 itself. A
    # Sobol sequence splits its first 64 points evenly. Trial 0, the baseline, is not one of them.
    space = {"beta2": FloatRange(low=0.98, high=0.9998, scale="log1m")}
    search = Search(toy_study("qmc", trials=65, space=space), tmp_path / "journal")
    tell_all(search, [3.0] * 65)
    high = sum(trial.values["beta2"] > 0.998 for trial in search.trials()[1:])
    assert high == 32


def test_numbers_to_choose_from_are_stored_as_their_place_in_ascending_order():
    space = {"lr": OrderedChoices(values=(1e-2, 1e-4, 1e-3)), "batch_tokens": OrderedChoices(values=(1024, 4096))}
    assert distributions(space) == {"lr#": IntDistribution(0, 2), "batch_tokens#": IntDistribution(0, 1)}
    points = [{"lr": lr, "batch_tokens": batch} for lr in (1e-4, 1e-3, 1e-2) for batch in (1024, 4096)]
    assert [encode(space, point) for point in points] == [
        {"lr#": rate, "batch_tokens#": batch} for rate in range(3) for batch in range(2)
    ]
    assert [decode(space, encode(space, point)) for point in points] == points
