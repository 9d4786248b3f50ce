"""Whether a trial is given up, as a function of its own reports and of the trials it may know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.sampling import is_infeasible
from hpstudy.study import Pruner


class Judge:
    """A pruner that tells trials of one study from another; `evals` is how many evaluations a trial has.

    What it works out about told trials, which never change, it keeps: successive halving marks the rungs of a trial as
    it judges it, so told trials face it again, each once.
    """

    def __init__(self, pruner: Pruner, evals: int) -> None:
        self._pruner, self._evals = pruner, evals
        self._first = max(1, math.ceil(round(pruner.from_fraction * evals, 6)))  # 0.55 * 20 is a little more than 11
        self._faced = self._study()
        self._rivals: list[FrozenTrial | None] = []  # what a later trial is held against, of each told one

    def stops(self, told: Sequence[FrozenTrial], reports: Mapping[int, float]) -> bool:
        """The word on a trial after its last report, from the told trials it may know; lower reports are better.

        `told` begins with what it was before, or is the beginning of it. Never before `from_fraction` of the
        evaluations, and never at the last one, which ends the run anyway.
        """
        last = max(reports, default=self._evals)
        if self._pruner.name == "none" or not self._first <= last < self._evals:
            return False
        self._rivals += [self._rival(past) for past in told[len(self._rivals) :]]
        view = self._study()
        view.add_trials(rival for rival in self._rivals[: len(told)] if rival is not None)
        return _replay(view, reports)[1]

    def _rival(self, past: FrozenTrial) -> FrozenTrial | None:
        """What the pruner looks at of a told trial: its reports, or the rungs it was marked with; None for nothing."""
        if is_infeasible(past):
            return None
        value = past.value if past.state is TrialState.COMPLETE else None
        if self._pruner.name == "median":
            if past.state is not TrialState.COMPLETE:
                return None
            return create_trial(value=value, intermediate_values=past.intermediate_values)
        faced = self._faced.tell(_replay(self._faced, past.intermediate_values)[0], value, state=past.state)
        return create_trial(state=TrialState.FAIL, system_attrs=faced.system_attrs) if faced.system_attrs else None

    def _study(self) -> optuna.Study:
        return optuna.create_study(pruner=_pruner(self._pruner, self._first))


def _replay(view: optuna.Study, reports: Mapping[int, float]) -> tuple[Trial, bool]:
    """A trial reported in `view`, and the pruner's word after its last report."""
    again, stop = view.ask(), False
    for eval_index, loss in sorted(reports.items()):
        again.report(loss, eval_index)
        stop = again.should_prune()
    return again, stop


def _pruner(pruner: Pruner, first: int) -> BasePruner:
    """Optuna's pruner; its steps are evaluations."""
    if pruner.name == "median":
        return MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=first)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruner.reduction)
