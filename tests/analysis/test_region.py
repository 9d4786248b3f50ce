"""How far each value may move before it matters: the surrogate and the region, on recorded runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from hpstudy.analysis.region import region, surrogate
from hpstudy.hparams import HParams
from hpstudy.study import Choices, Study
from tests.helpers.recorded import recorded, study_of


def best_of(study: Study, trials: pd.DataFrame) -> HParams:
    row = trials.loc[trials["val_loss"].idxmin()]
    return study.trial_hparams(
        {key: row[key].item() if hasattr(row[key], "item") else row[key] for key in study.space}, 999_424
    )


@pytest.mark.parametrize(("model", "error"), [("gpt-2x64", 0.08), ("gpt-4x128", 0.03)])
def test_nine_in_ten_held_out_runs_are_in_their_90_percent_interval(model: str, error: float) -> None:
    """60 and 64 runs: of a true 90%, fewer than 83% are inside with a chance of 3%."""
    found = surrogate(study_of(), recorded("random", model))
    assert found is not None
    assert 0.83 <= found.covered <= 0.98
    assert found.explained >= 0.85  # of the variance
    assert found.error <= error  # nats, of the better half


def test_what_the_region_holds_is_as_good_when_it_is_trained() -> None:
    """Of a grid, 60 random points are the trials. The whole grid says what the values within the margin really lose."""
    study = study_of()
    keys = ["lr", "beta2", "weight_decay", "batch_tokens"]
    grid = recorded("grid").groupby(keys, as_index=False)["val_loss"].mean()
    space = {key: Choices(values=tuple(sorted(grid[key].unique().tolist()))) for key in keys}
    study = replace(study, space=space)
    losses = grid.set_index(keys)["val_loss"]
    claimed, within, ranges = 0, 0, 0
    for seed in range(10):
        trials = grid.sample(60, random_state=seed).assign(phase="search", outcome="complete")
        best = best_of(study, trials)
        found = region(study, trials, best, 0.01)
        assert found is not None
        around = {key: getattr(best, key) for key in keys}
        for each in found.keys:
            real = [losses[tuple((around | {each.key: value}).values())] for value in each.values]
            claimed += len(real) - 1  # the best value itself is no claim
            within += sum(loss <= losses[tuple(around.values())] + found.margin for loss in real) - 1
            ranges += len(space[each.key].values) - 1
    assert claimed >= 0.2 * ranges
    assert within >= 0.8 * claimed


def test_a_study_of_too_few_or_unpredictable_trials_says_nothing() -> None:
    study, trials = study_of(), recorded("random")
    best = best_of(study, trials)
    assert region(study, trials.head(30), best, 0.01) is None
    shuffled = trials.assign(val_loss=trials["val_loss"].sample(frac=1, random_state=1).to_numpy())
    assert region(study, shuffled, best, 0.01) is None
    assert region(study, trials.assign(val_loss=4.0), best, 0.01) is None


def test_the_sentence_names_what_does_not_matter_and_keeps_what_gpt3_has() -> None:
    study, trials = study_of(), recorded("random", "gpt-4x128")
    found = region(study, trials, best_of(study, trials), 0.01)
    assert found is not None
    assert found.sentence("GPT-3") == (
        "Predicted within 0.018 nats of the best (as closely as the trials predict each other): lr 0.0025 to 0.0082; "
        "warmup_fraction 0.091 to 0.3; batch_tokens 1,024; beta1, beta2, weight_decay and min_lr_fraction anything "
        "searched; each with the other values as found. Simplest: GPT-3's beta1, beta2, weight_decay and "
        "min_lr_fraction with lr 0.005, warmup_fraction 0.2 and batch_tokens 1,024."
    )


def test_a_larger_margin_of_the_study_is_not_replaced_by_the_error() -> None:
    study, trials = study_of(), recorded("random", "gpt-4x128")
    found = region(study, trials, best_of(study, trials), 0.05)
    assert found is not None
    assert found.margin == 0.05
    assert not found.by_error


def test_a_diverged_trial_counts_as_a_uniform_guess_and_moves_no_range() -> None:
    study, trials = study_of("lr = { low = 3e-4, high = 4e-2 }"), recorded("random", "gpt-4x128")
    lr = [3e-4 * 1.4**step for step in range(14)]
    losses = [3.0 + 0.3 * math.log10(each / 4e-3) ** 2 for each in lr]
    made = trials.head(14).assign(lr=lr, val_loss=losses)
    whole = region(study, made, best_of(study, made), 0.01)
    made.loc[13, ["outcome", "val_loss"]] = ["diverged", float("nan")]
    without = region(study, made, best_of(study, made), 0.01)
    assert whole is not None
    assert without is not None
    assert whole.keys[0].values == pytest.approx((4e-3 / 10**0.18, 4e-3 * 10**0.18), rel=0.1)
    assert without.keys[0].values == pytest.approx(whole.keys[0].values, rel=0.15)
