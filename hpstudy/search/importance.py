"""How much each searched hyperparameter matters, by PED-ANOVA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hpstudy.search.search import TrialView
from hpstudy.search.space import distributions, encode
from hpstudy.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """A key's share, and the range of the middle 90% over resampled trials."""

    share: float
    low: float
    high: float


MIN_TRIALS = 4  # PED-ANOVA compares at least two best trials with the rest


def importances(study: Study, trials: Sequence[TrialView]) -> dict[str, Importance]:
    """Each key's share in reaching the best tenth of the trials, or the Pareto front. Largest first; they add up to 1.

    Empty below MIN_TRIALS complete trials. Source: Watanabe et al. 2023, arXiv:2304.10255.
    """
    complete = [trial for trial in trials if trial.objectives is not None]
    if len(complete) < MIN_TRIALS or not study.space:
        return {}
    view = optuna.create_study(directions=study.directions)
    space = distributions(study.space)
    view.add_trials(
        [
            create_trial(values=trial.objectives, params=encode(study.space, trial.values), distributions=space)
            for trial in complete
        ]
    )
    shares = get_param_importances(view, evaluator=PedAnovaImportanceEvaluator())
    keys = dict(zip(space, study.space, strict=True))  # "1-beta1" is beta1
    return {keys[parameter]: Importance(share=share, low=share, high=share) for parameter, share in shares.items()}
