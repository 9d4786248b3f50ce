"""The fairer opponents: the baseline with only lr searched, and the baseline at the winner's batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpstudy.coordinates import step_law_lr
from hpstudy.records import Run
from hpstudy.running.opponents import batch_control, tuned_lr
from hpstudy.study import Choices, FloatRange

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


BATCHES = {LR + ', scale = "log" }': "batch_tokens = { choices = [256, 512] }", "\nbatch_tokens = 256\n": "\n"}


def winner(study, **values):
    hparams = replace(study.baseline_hparams(5120), beta2=0.97, lr=0.01, **values)
    return Run(run_id="search-0007", phase="search", trial=7, seed=0, tokens=5120, hparams=hparams)


def test_the_batch_control_is_the_baseline_with_the_winners_batch_and_ramp_and_nothing_else_of_it(tiny):
    study = tiny(replace=BATCHES, more="[baseline]\nalso = 'batch'\noverrides = { batch_tokens = 256 }")
    found = batch_control(study, winner(study, batch_tokens=512, batch_ramp_fraction=0.2, batch_ramp_start=0.25))
    assert (found.run_id, found.phase, found.trial, found.seed, found.tokens) == ("batch-0007", "batch", 7, 0, 5120)
    own = {"batch_tokens": 512, "batch_ramp_fraction": 0.2, "batch_ramp_start": 0.25}
    baseline = study.baseline_hparams(5120)
    assert replace(found.hparams, warmup_fraction=0.5) == replace(baseline, warmup_fraction=0.5, **own)
    # 10 steps of warm-up, as long as the baseline's, are all 10 steps of the larger batch, up to the decay's end
    assert found.hparams.warmup_fraction == found.hparams.decay_fraction


def test_a_winner_at_the_baselines_batch_needs_no_control(tiny):
    study = tiny(replace=BATCHES, more="[baseline]\nalso = 'batch'\noverrides = { batch_tokens = 256 }")
    assert batch_control(study, winner(study)) is None


def test_the_opponent_of_a_search_of_lr_over_rule_has_the_same_range_in_raw_values(tiny):
    study = tiny(replace={LR: "lr_over_rule = { low = 0.1, high = 2", "format = 1": "format = 4"})
    law = step_law_lr(study.spec.model.num_weights, 5120)
    tuned = tuned_lr(study)
    assert tuned.space == {"lr": FloatRange(low=0.1 * law, high=2 * law, scale="log")}
    listed = tuned_lr(replace(study, space={"lr_over_rule": Choices(values=(0.5, 1.0))}))
    assert listed.space == {"lr": Choices(values=(0.5 * law, law))}
