"""Whether a trial is stopped early, as a function of its own reports and of the trials it may know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.sampling import is_infeasible
from hpstudy.study import Pruner


class TrialPruner:
    """Decides for the trials of one study; `evals` is the number of evaluations of a trial.

    Finished trials never change, so what the pruner needs of them is computed once and kept. Optuna notes the rungs of
    successive halving that a trial passed only while it decides, so each finished trial is decided again once.
    """

    def __init__(self, pruner: Pruner, evals: int) -> None:
        self._pruner, self._evals = pruner, evals
        self._first = max(1, math.ceil(round(pruner.from_fraction * evals, 6)))  # 0.55 * 20 is a little more than 11
        self._marking = self._study()
        self._rivals: list[FrozenTrial | None] = []  # of each finished trial, what later trials are compared with

    def stops(self, finished: Sequence[FrozenTrial], reports: Mapping[int, float]) -> bool:
        """Whether a trial stops after its last report, given the finished trials it may know. Lower is better.

        `finished` must extend or begin the sequence of earlier calls. Never before `from_fraction` of the evaluations,
        and never at the last evaluation, which ends the run anyway.
        """
        last = max(reports, default=self._evals)
        if self._pruner.name == "none" or not self._first <= last < self._evals:
            return False
        self._rivals += [self._rival(past) for past in finished[len(self._rivals) :]]
        view = self._study()
        view.add_trials(rival for rival in self._rivals[: len(finished)] if rival is not None)
        return _replay(view, reports)[1]

    def _rival(self, past: FrozenTrial) -> FrozenTrial | None:
        """What the pruner uses of a finished trial: its reports, or the rungs it reached; None for nothing."""
        if is_infeasible(past):
            return None
        value = past.value if past.state is TrialState.COMPLETE else None
        if self._pruner.name == "median":
            if past.state is not TrialState.COMPLETE:
                return None
            return create_trial(value=value, intermediate_values=past.intermediate_values)
        marked = self._marking.tell(_replay(self._marking, past.intermediate_values)[0], value, state=past.state)
        return create_trial(state=TrialState.FAIL, system_attrs=marked.system_attrs) if marked.system_attrs else None

    def _study(self) -> optuna.Study:
        return optuna.create_study(pruner=_pruner(self._pruner, self._first))


def _replay(view: optuna.Study, reports: Mapping[int, float]) -> tuple[Trial, bool]:
    """A new trial of `view` with these reports, and the pruner's decision after the last."""
    again, stop = view.ask(), False
    for eval_index, loss in sorted(reports.items()):
        again.report(loss, eval_index)
        stop = again.should_prune()
    return again, stop


def _pruner(pruner: Pruner, first: int) -> BasePruner:
    """Optuna's pruner, with evaluations as steps."""
    match pruner.name:
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=pruner.startup)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruner.reduction)
