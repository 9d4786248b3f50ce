"""The fairer opponent: GPT-3's values with only lr tuned, the one knob that everybody tunes."""

from __future__ import annotations

from dataclasses import replace

from hpstudy.study import Choices, FloatRange, Objective, Sampler, Study

JOURNAL = "tuned-lr.journal"
BELOW, ABOVE = 10, 50  # times the baseline's lr; small models want far more than GPT-3's 6e-4, large ones less


def tuned_lr(study: Study) -> Study:
    """The study whose baseline is the same and which searches lr alone, for val/loss.

    lr varies as in the study where that searches it, else on a log scale from a tenth of the baseline's to 50 times.
    """
    lr = study.baseline_hparams(study.spec.tokens).lr
    dimension = study.space.get("lr", FloatRange(low=lr / BELOW, high=lr * ABOVE, scale="log"))
    baseline = {**study.hparams, **study.overrides}
    own = {"lr": baseline.pop("lr")} if "lr" in baseline else {}
    budget = study.budget
    if budget.sampler.name == "grid" and not isinstance(dimension, Choices):
        budget = replace(budget, sampler=Sampler(name="tpe", startup=10, seed=budget.sampler.seed))
    return replace(
        study,
        space={"lr": dimension},
        hparams=baseline,
        overrides=own,
        objectives=(Objective(metric="val/loss", direction="minimize"),),
        budget=budget,
    )
