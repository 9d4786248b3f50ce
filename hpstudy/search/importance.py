"""How much each searched hyperparameter matters, by PED-ANOVA, and how far that depends on the trials at hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from hpstudy.search.search import TrialView
from hpstudy.search.space import distributions, encode
from hpstudy.study import Study

MIN_TRIALS = 30  # below it, a single trial more or less turns the shares over
RESAMPLES = 40
RANGE = (0.05, 0.95)  # quantiles over the resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """A key's share in reaching the best tenth of the trials, or the Pareto front."""

    share: float  # of all trials
    low: float  # 5% quantile over trials drawn again with replacement
    high: float  # 95% quantile


def importances(study: Study, trials: Sequence[TrialView]) -> dict[str, Importance]:
    """Each key's importance, the largest share first; the shares add up to 1.

    Empty below MIN_TRIALS complete trials. The resamples have a fixed seed, so the same trials give the same ranges.
    Source: Watanabe et al. 2023, arXiv:2304.10255.
    """
    complete = [trial for trial in trials if trial.objectives is not None]
    if len(complete) < MIN_TRIALS or not study.space or len({trial.objectives for trial in complete}) < 2:
        return {}
    space = distributions(study.space)
    frozen = [
        create_trial(values=trial.objectives, params=encode(study.space, trial.values), distributions=space)
        for trial in complete
    ]
    found = _shares(study, frozen)
    draw = np.random.default_rng(0)
    drawn = (draw.integers(len(frozen), size=len(frozen)) for _ in range(RESAMPLES))
    again = [_shares(study, [frozen[index] for index in indices]) for indices in drawn]
    ranges = {name: np.quantile([shares[name] for shares in again], RANGE) for name in found}
    keys = dict(zip(space, study.space, strict=True))  # "1-beta1" is beta1
    return {
        keys[name]: Importance(share=float(share), low=float(ranges[name][0]), high=float(ranges[name][1]))
        for name, share in found.items()
    }


def _shares(study: Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Each parameter's share; a trial may occur more than once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many equal trials leave nothing to compare, which gives no share
        return get_param_importances(_Sample(study, trials), evaluator=PedAnovaImportanceEvaluator())


class _Sample(optuna.Study):
    """A study of given trials. Copying them into a storage would take most of the time."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        made = optuna.create_study(directions=study.directions)
        super().__init__(made.study_name, made._storage)
        self._sample = [copy.copy(trial) for trial in trials]
        for number, trial in enumerate(self._sample):
            trial._trial_id = number  # the evaluator tells trials apart by it

    def get_trials(self, *_: Any, **__: Any) -> list[FrozenTrial]:
        """The given trials, all of them complete."""
        return self._sample
