"""What is proposed for a trial, as a function of its number and of the trials it may know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import islice, product

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.space import Params, Space, distributions, encode
from hpstudy.search.warm_start import FADED, Prior, faded
from hpstudy.study import Choices, Sampler, Study, Value

MEMORY = "memory"  # the constraint that a trial breaks when it runs out of memory
FITS, EXCEEDS = -1.0, 1.0  # a constraint holds if it is at most 0


def first_proposals(study: Study) -> list[dict[str, Value]]:
    """The proposals made without a sampler: the baseline, if the space holds it, then a grid's other points."""
    baseline = study.baseline_proposal()
    first = [] if baseline is None else [baseline]
    if not study.is_grid:
        return first
    sides = [dimension.values for dimension in study.space.values() if isinstance(dimension, Choices)]
    assert len(sides) == len(study.space), "a grid needs choices in every dimension"
    points = (dict(zip(study.space, point, strict=True)) for point in product(*sides))
    return first + [point for point in points if point != baseline]


class SamplerView:
    """The search as the sampler may see it, in memory: known trials as they ended, later ones as running.

    It is kept from trial to trial, which saves building it again and changes no proposal. Results of later trials are
    left out even if they exist by now, because that depends on timing.
    """

    def __init__(self, study: Study, warm_start: Sequence[Prior] = ()) -> None:
        self._study, self._warm_start = study, warm_start
        self._space = distributions(study.space)
        self._own: list[float] = []
        self._renew(constrained=False)

    def propose(self, trials: Sequence[FrozenTrial], num_known: int) -> Params:
        """The sampler's proposal after `trials`, of which it may know how the first `num_known` ended."""
        constrained = self._constrained or any(map(is_infeasible, trials[self._num_told : num_known]))
        own = self._own_losses(trials[:num_known])
        if constrained != self._constrained or len(own) != len(self._own):
            self._own = own
            self._renew(constrained)
        self._view.sampler = _sampler(self._study.budget.sampler, len(trials))
        for trial in trials[self._num_asked :]:
            self._ask(trial)
        for trial in trials[self._num_told : num_known]:
            self._tell(trial)
        self._num_asked += 1
        params: Params = self._view.ask(self._space).params
        return params

    def _own_losses(self, known: Sequence[FrozenTrial]) -> list[float]:
        """The first losses of this study, which set the level of other studies' trials; empty without a warm start."""
        complete = (t for t in known if t.state is TrialState.COMPLETE and not is_infeasible(t))
        return [trial.values[0] for trial in islice(complete, FADED)] if self._warm_start else []

    def _renew(self, constrained: bool) -> None:
        """An empty view, but for what other studies' trials still say."""
        self._view = optuna.create_study(directions=self._study.directions)
        self._num_asked = self._num_told = 0
        self._constrained = constrained
        earlier = [trial for prior in self._warm_start for trial in faded(prior, self._own)]
        for trial in earlier:
            self._view.add_trial(
                create_trial(
                    params=encode(self._study.space, trial.values),
                    distributions=self._space,
                    value=trial.loss,
                    constraints={MEMORY: FITS} if constrained else None,
                )
            )
        self._num_earlier = len(earlier)

    def _ask(self, trial: FrozenTrial) -> None:
        if self._study.budget.sampler.name == "qmc":
            self._view.ask(self._space)  # the sampler's place in its sequence is the number of asks
        else:
            self._view.add_trial(running_trial(self._study.space, trial.params))
        self._num_asked += 1

    def _tell(self, trial: FrozenTrial) -> None:
        number = self._num_told
        self._num_told += 1
        if self._study.budget.sampler.name == "qmc":
            return  # it does not learn
        again = Trial(self._view, self._num_earlier + number)  # in memory, ids are numbers
        for eval_index, loss in trial.intermediate_values.items():
            again.report(loss, eval_index)
        if self._constrained and trial.state is TrialState.COMPLETE:  # GP needs it of all trials or of none
            again.set_constraint(MEMORY, trial.constraints.get(MEMORY, FITS))
        self._view.tell(again, trial.values if trial.state is TrialState.COMPLETE else None, state=trial.state)


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether the trial broke a constraint. Such trials are never ranked."""
    return any(value > 0 for value in trial.constraints.values())


def running_trial(space: Space, params: Params) -> FrozenTrial:
    """A trial that has been asked. Optuna refuses it if its parameters are outside the space."""
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions(space))


def _sampler(sampler: Sampler, number: int) -> BaseSampler:
    """A new sampler for each trial, so that a resumed search draws what an uninterrupted one would."""
    seed = int(np.random.SeedSequence([sampler.seed, number]).generate_state(1)[0])
    match sampler.name:
        case "tpe":
            return _Tpe(n_startup_trials=sampler.startup, seed=seed)
        case "gp":
            return GPSampler(n_startup_trials=sampler.startup, seed=seed, warn_independent_sampling=False)
        case "random":
            return RandomSampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # one scrambling for the whole study
                return QMCSampler(scramble=True, seed=sampler.seed, warn_independent_sampling=False)
        case "grid":
            raise AssertionError("all points of a grid are first proposals")


class _Tpe(TPESampler):
    """TPE for trials of one space. Optuna compares the spaces of all trials for each proposal, a third of its time."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What Optuna would find: the space of the last trial that it learns from, and nothing without one."""
        if len(study.directions) > 1:
            return {}
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        learnt = next((t for t in reversed(study.get_trials(deepcopy=False)) if t.state in states), None)
        space = sorted(learnt.distributions.items()) if learnt else []
        return {name: distribution for name, distribution in space if not distribution.single()}
