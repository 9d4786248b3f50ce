"""What a trial is proposed, as a function of its number and of the trials it may know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.space import Params, Space, distributions
from hpstudy.study import Choices, Sampler, Study, Value

MEMORY = "memory"  # the constraint that a trial breaks which ran out of it
FITS, EXCEEDS = -1.0, 1.0  # a constraint holds up to 0


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


class SamplerView:
    """The search as the sampler may see it, in memory: told trials as they ended, those asked since as running.

    It grows along with the search, so that a proposal costs what the sampler costs; what is proposed is the same from
    a view made anew. Results of running trials are left out: whether they have ended by now is timing.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._space = distributions(study.space)
        self._renew(constrained=False)

    def propose(self, trials: Sequence[FrozenTrial], num_told: int) -> Params:
        """What the study's sampler proposes after `trials`, of which it may know how the first `num_told` ended."""
        constrained = self._constrained or any(map(is_infeasible, trials[self._num_told : num_told]))
        if constrained != self._constrained or self._num_asked > len(trials):
            self._renew(constrained)
        self._view.sampler = _sampler(self._study.budget.sampler, len(trials))
        for trial in trials[self._num_asked :]:
            self._ask(trial)
        for trial in trials[self._num_told : num_told]:
            self._tell(trial)
        self._num_asked += 1
        params: Params = self._view.ask(self._space).params
        return params

    def _renew(self, constrained: bool) -> None:
        self._view = optuna.create_study(directions=[objective.direction for objective in self._study.objectives])
        self._num_asked = self._num_told = 0
        self._constrained = constrained

    def _ask(self, trial: FrozenTrial) -> None:
        if self._study.budget.sampler.name == "qmc":
            self._view.ask(self._space)  # its place in the sequence is how often it was asked
        else:
            self._view.add_trial(running_trial(self._study.space, trial.params))
        self._num_asked += 1

    def _tell(self, trial: FrozenTrial) -> None:
        number = self._num_told
        self._num_told += 1
        if self._study.budget.sampler.name == "qmc":
            return  # learns nothing
        again = Trial(self._view, number)  # in memory the first study's trials have their numbers as ids
        for eval_index, loss in trial.intermediate_values.items():
            again.report(loss, eval_index)
        if self._constrained and trial.state is TrialState.COMPLETE:  # of all or of none, where GP is to model it
            again.set_constraint(MEMORY, trial.constraints.get(MEMORY, FITS))
        self._view.tell(again, trial.values if trial.state is TrialState.COMPLETE else None, state=trial.state)


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether the trial broke a constraint; no such trial is ranked."""
    return any(value > 0 for value in trial.constraints.values())


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
