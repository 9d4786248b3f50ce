"""Whether a trial is stopped early, as a function of its own reports and of the trials it may know."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.journal import is_infeasible
from hpstudy.study import Pruner


class TrialPruner:
    """Decides for the trials of one study; `evals` is the number of evaluations of a trial.

    Finished trials never change, so what the pruner needs of them is computed once and kept. Optuna notes the rungs of
    successive halving that a trial passed only while it decides, so each finished trial is decided again once.
    """

    def __init__(self, pruner: Pruner, evals: int) -> None:
        self._pruner, self._evals = pruner, evals
        self._first = max(1, math.ceil(round(pruner.from_fraction * evals, 6)))  # 0.55 * 20 is a little more than 11
        self._rivals: list[FrozenTrial] = []  # of each finished trial, what later trials are compared with

    def stops(self, finished: Sequence[FrozenTrial], reports: Mapping[int, float]) -> bool:
        """Whether a trial stops after its last report, given the finished trials it may know. Lower is better.

        `finished` must extend or begin the sequence of earlier calls. Never before `from_fraction` of the evaluations,
        and never at the last evaluation, which ends the run anyway.
        """
        last = max(reports, default=self._evals)
        if self._pruner.name in ("none", "foresight") or not self._first <= last < self._evals:
            return False
        for past in finished[len(self._rivals) :]:
            self._rivals.append(self._rival(past))
        return _replay(self._among(self._rivals[: len(finished)]), reports)[1]

    def _rival(self, past: FrozenTrial) -> FrozenTrial:
        """What the pruner uses of a finished trial: its reports, or the rungs it reached, or neither."""
        if not is_infeasible(past):
            if self._pruner.name == "median" and past.state is TrialState.COMPLETE:
                return create_trial(value=past.value, intermediate_values=past.intermediate_values)
            if self._pruner.name == "successive_halving":
                view = self._among(self._rivals)
                again, _ = _replay(view, past.intermediate_values)
                return create_trial(
                    state=TrialState.FAIL, system_attrs=view.tell(again, state=TrialState.FAIL).system_attrs
                )
        return create_trial(state=TrialState.FAIL)

    def _among(self, rivals: list[FrozenTrial]) -> _Rivals:
        """A new study in memory whose trials are compared with these."""
        view = optuna.create_study()
        return _Rivals(view.study_name, view._storage, pruner=_pruner(self._pruner, self._first), rivals=rivals)


class _Rivals(optuna.Study):
    """A study that shows its pruner trials which are kept outside it: adding them for each decision took long.

    Its own trials are left out, since no pruner here compares a trial with itself.
    """

    def __init__(self, *args: Any, rivals: list[FrozenTrial], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compared = rivals

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The rivals, as they are."""
        return self._compared if states is None else [trial for trial in self._compared if trial.state in states]


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
        case "none" | "foresight":  # foresight.py decides by itself
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=pruner.startup)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=pruner.reduction)
