"""The fairer opponent: the baseline with only lr searched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.running.tuned_lr import tuned_lr
from hpstudy.study import Choices

LR = "lr = { low = 1e-4, high = 3e-2"
BOTH = '[objective]\nmetric = ["val/loss", "train/tok_per_sec"]'


@pytest.mark.parametrize(
    ("changes", "more", "ends"),
    [
        ({}, "", (1e-4, 3e-2)),
        ({LR: "weight_decay = { low = 0.1, high = 1"}, "", (6e-5, 3e-2)),
        ({"micro_batch = 16": "micro_batch = 16\nlr = 1e-2", LR: "eps = { low = 1e-9, high = 1e-7"}, BOTH, (1e-3, 0.5)),
    ],
    ids=["searched", "gpt3", "fixed"],
)
def test_the_opponent_has_the_same_baseline_and_searches_lr_alone_for_loss(tiny, changes, more, ends):
    study = tiny(replace=changes, more=more)
    tuned = tuned_lr(study)
    assert list(tuned.space) == ["lr"]
    assert (tuned.space["lr"].low, tuned.space["lr"].high) == pytest.approx(ends)
    assert tuned.baseline_hparams(5120) == study.baseline_hparams(5120)
    assert replace(tuned.trial_hparams({"lr": 0.1}, 5120), lr=0.0) == replace(study.baseline_hparams(5120), lr=0.0)
    assert tuned.metrics == ("val/loss",)
    assert tuned.baseline_proposal() is not None


def test_the_opponent_of_a_grid_keeps_the_grids_values_of_lr(tiny):
    grid = {
        'lr = { low = 1e-4, high = 3e-2, scale = "log" }': "lr = { choices = [6e-4, 1e-3] }",
        'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': "beta2 = { choices = [0.9, 0.95] }",
        'sampler = { name = "tpe", startup = 2 }': 'sampler = "grid"',
    }
    tuned = tuned_lr(tiny(replace=grid, more="[baseline]\nalso = 'tuned-lr'"))
    assert tuned.space["lr"] == Choices(values=(6e-4, 1e-3))
    assert tuned.budget.sampler.name == "grid"
