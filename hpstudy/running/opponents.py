"""Fairer opponents than GPT-3's values.

tuned-lr tunes only lr, as everybody does; batch has GPT-3's values at the winner's batch, and so as many steps.
"""

from __future__ import annotations

from dataclasses import replace

from hpstudy.coordinates import step_law_lr
from hpstudy.records import Run, trial_run_id
from hpstudy.study import Choices, Dimension, FloatRange, Sampler, Study
from hpstudy.study.checks import BATCH_KEYS

TUNED_LR_JOURNAL = "tuned-lr.journal"
BELOW, ABOVE = 10, 50  # range of the baseline's lr; small models need far more than GPT-3's 6e-4, large ones less


def tuned_lr(study: Study) -> Study:
    """The study with the same baseline that searches only lr, for val/loss.

    Its range is the study's own if that searches lr or lr_over_rule, else a log scale from 1/10 to 50 times the
    baseline's lr.
    """
    dimension = _lr_dimension(study)
    baseline = {**study.hparams, **study.overrides}
    own = {"lr": baseline.pop("lr")} if "lr" in baseline else {}
    budget = study.budget
    if budget.sampler.name == "grid" and not isinstance(dimension, Choices):
        budget = budget.model_copy(update={"sampler": Sampler(seed=budget.sampler.seed).in_format(study.format)})
    return replace(
        study,
        space={"lr": dimension},
        hparams=baseline,
        overrides=own,
        metrics=("val/loss",),
        budget=budget,
    )


def _lr_dimension(study: Study) -> Dimension:
    """The lr that tuned-lr searches, in raw values."""
    lr, over_rule = study.baseline.lr, study.space.get("lr_over_rule")
    if over_rule is None:
        return study.space.get("lr", FloatRange(low=lr / BELOW, high=lr * ABOVE, scale="log"))
    size = study.size()
    rule = step_law_lr(size.weights, size.tokens)
    if isinstance(over_rule, Choices):
        return replace(over_rule, values=tuple(float(value) * rule for value in over_rule.values))
    return replace(over_rule, low=over_rule.low * rule, high=over_rule.high * rule)


def batch_control(study: Study, winner: Run) -> Run | None:
    """The baseline at the batch and ramp of a trial, numbered like it; None if the trial has the baseline's."""
    own = {key: getattr(winner.hparams, key) for key in BATCH_KEYS}
    if all(getattr(study.baseline, key) == value for key, value in own.items()):
        return None
    control = replace(study, overrides={**study.overrides, **own, "micro_batch": winner.hparams.micro_batch})
    return Run(
        run_id=trial_run_id("batch", winner.trial or 0),
        phase="batch",
        trial=winner.trial,
        seed=study.spec.seed,
        tokens=winner.tokens,
        hparams=control.baseline_hparams(winner.tokens),
    )
