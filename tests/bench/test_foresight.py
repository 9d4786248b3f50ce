"""The bench of foresight replays trials in the order that it is given, and counts what stopping saved."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.bench.foresight import Recorded, forecasts, replayed, seed_sd, study_of
from tests.search.test_foresight import BAD, EVALS, GOOD, TOKENS, made_up


def recorded(number: int, lr: float) -> Recorded:
    curve = made_up(number, lr)
    values = {"lr": lr, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "warmup_fraction": 0.05}
    fixed = {"min_lr_fraction": 0.1, "batch_tokens": 4096}
    return Recorded(values=values | fixed, losses=dict(curve.losses), final=curve.losses[EVALS])


def test_a_replay_saves_the_tokens_of_the_trials_that_it_stops_and_keeps_the_best():
    trials = [recorded(number, GOOD if number % 2 else BAD * (1 + number / 10)) for number in range(20)]
    study = study_of("gpt-2x64", TOKENS, len(trials), parallel=2)
    end = replayed(study, trials)
    assert end.stopped > 0
    assert 0 < end.saved < end.stopped / len(trials)
    assert end.regret < 0.01
    shares = {share for share, *_ in forecasts(study, trials, EVALS)}
    assert shares == {0.15, 0.3, 0.5, 0.7}


def test_the_seeds_sd_is_pooled_over_cells():
    fixed = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "warmup_fraction": 0.05, "min_lr_fraction": 0.1}
    rows = [
        {"group": "grid", "diverged": False, "lr": lr, "batch_tokens": 4096, "loss": loss, **fixed}
        for lr, losses in ((1e-3, (3.0, 3.2)), (2e-3, (3.0, 3.6)))
        for loss in losses
    ]
    sds = (0.2 / 2**0.5, 0.6 / 2**0.5)  # of two values: their distance over the root of two
    pooled, middle = seed_sd(pd.DataFrame(rows))
    assert pooled == pytest.approx(((sds[0] ** 2 + sds[1] ** 2) / 2) ** 0.5)
    assert middle == pytest.approx(sum(sds) / 2)
