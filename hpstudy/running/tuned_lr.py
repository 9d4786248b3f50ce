"""A fairer opponent: GPT-3's values with only lr tuned, as everybody tunes it."""

from __future__ import annotations

from dataclasses import replace

from hpstudy.study import Choices, FloatRange, Sampler, Study

TUNED_LR_JOURNAL = "tuned-lr.journal"
BELOW, ABOVE = 10, 50  # range of the baseline's lr; small models need far more than GPT-3's 6e-4, large ones less


def tuned_lr(study: Study) -> Study:
    """The study with the same baseline that searches only lr, for val/loss.

    Its range is the study's own if that searches lr, else a log scale from 1/10 to 50 times the baseline's lr.
    """
    lr = study.baseline.lr
    dimension = study.space.get("lr", FloatRange(low=lr / BELOW, high=lr * ABOVE, scale="log"))
    baseline = {**study.hparams, **study.overrides}
    own = {"lr": baseline.pop("lr")} if "lr" in baseline else {}
    budget = study.budget
    if budget.sampler.name == "grid" and not isinstance(dimension, Choices):
        budget = budget.model_copy(update={"sampler": Sampler(name="tpe", startup=10, seed=budget.sampler.seed)})
    return replace(
        study,
        space={"lr": dimension},
        hparams=baseline,
        overrides=own,
        metrics=("val/loss",),
        budget=budget,
    )
