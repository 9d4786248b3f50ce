"""What a trial is proposed, as a function of its number and of the trials it may know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpstudy.search.space import Params, Space, distributions
from hpstudy.study import Choices, Sampler, Study, Value


def is_grid(study: Study) -> bool:
    """Whether the search is a list of points; an empty space is one, of the single point it has."""
    return study.budget.sampler.name == "grid" or not study.space


def first_proposals(study: Study) -> list[dict[str, Value]]:
    """The proposals that no sampler makes: the baseline where the space holds it, then a grid's other points."""
    baseline = study.baseline_proposal()
    first = [] if baseline is None else [baseline]
    if not is_grid(study):
        return first
    sides = [dimension.values for dimension in study.space.values() if isinstance(dimension, Choices)]
    assert len(sides) == len(study.space), "a grid needs choices in every dimension"
    points = (dict(zip(study.space, point, strict=True)) for point in product(*sides))
    return first + [point for point in points if point != baseline]


def num_trials(study: Study, asked: int | None) -> int:
    """Trials of the search: as many as asked for, else as the file says; a grid has no more than its points."""
    wanted = study.budget.trials if asked is None else asked
    return min(wanted, len(first_proposals(study))) if is_grid(study) else wanted


def sampled_params(study: Study, number: int, told: Sequence[FrozenTrial], running: Sequence[FrozenTrial]) -> Params:
    """What the study's sampler proposes for trial `number`; `told` and `running` are the trials before it.

    Some of `running` may have ended by now. Whether they have is timing, so their results are left out.
    """
    space = distributions(study.space)
    view = optuna.create_study(
        directions=[objective.direction for objective in study.objectives],
        sampler=_sampler(study.budget.sampler, number),
    )
    if study.budget.sampler.name == "qmc":
        for _ in range(number):  # its place in the sequence is how often it was asked, whatever became of the trials
            view.ask(space)
    else:
        view.add_trials([*told, *(running_trial(study.space, trial.params) for trial in running)])
    return view.ask(space).params


def running_trial(space: Space, params: Params) -> FrozenTrial:
    """A trial that has been asked; a study that it is added to refuses parameters outside the space."""
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions(space))


def _sampler(sampler: Sampler, number: int) -> BaseSampler:
    """A sampler made new for each trial, so that a resumed search draws what an uninterrupted one would."""
    seed = int(np.random.SeedSequence([sampler.seed, number]).generate_state(1)[0])
    match sampler.name:
        case "tpe":
            return TPESampler(n_startup_trials=sampler.startup, seed=seed)
        case "gp":
            return GPSampler(n_startup_trials=sampler.startup, seed=seed, warn_independent_sampling=False)
        case "random":
            return RandomSampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return QMCSampler(
                    scramble=True, seed=sampler.seed, warn_independent_sampling=False
                )  # one scrambling for the whole study
        case "grid":
            raise AssertionError("a grid's points are all first proposals")
