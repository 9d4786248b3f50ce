"""Whether a trial is given up, as a function of its own reports and of the trials it may know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from hpstudy.study import Pruner


def stops(pruner: Pruner, evals: int, told: Sequence[FrozenTrial], reports: Mapping[int, float]) -> bool:
    """The pruner's word on a trial after its last report, from the told trials it may know; lower reports are better.

    Never before `from_fraction` of the evaluations, and never at the last one, which ends the run anyway.
    """
    if pruner.name == "none" or not reports or max(reports) >= evals:
        return False
    view = optuna.create_study(pruner=_pruner(pruner, evals))
    if pruner.name == "median":
        view.add_trials(told)
    else:  # successive halving marks a trial's rungs as it judges it, so told trials face it again
        for past in told:
            value = past.value if past.state is TrialState.COMPLETE else None
            view.tell(_replay(view, past.intermediate_values)[0], value, state=past.state)
    return _replay(view, reports)[1]


def _replay(view: optuna.Study, reports: Mapping[int, float]) -> tuple[Trial, bool]:
    """A trial reported in `view`, and the pruner's word after its last report."""
    again, stop = view.ask(), False
    for eval_index, loss in sorted(reports.items()):
        again.report(loss, eval_index)
        stop = again.should_prune()
    return again, stop


def _pruner(pruner: Pruner, evals: int) -> BasePruner:
    """Optuna's pruner; its steps are evaluations."""
    first = max(1, math.ceil(round(pruner.from_fraction * evals, 6)))  # 0.55 * 20 is a little more than 11
    if pruner.name == "median":
        return MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=first)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruner.reduction)
