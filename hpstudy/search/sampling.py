"""What is proposed for a trial, as a function of its number and of the trials it may know."""

from __future__ import annotations

import copy
import math
import os
import warnings
from bisect import insort
from collections import deque
from collections.abc import Callable, Container, Sequence
from itertools import product
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpstudy.search.journal import is_infeasible
from hpstudy.search.rule_trials import rule_trials
from hpstudy.search.space import Params, Space, distributions, encode
from hpstudy.search.warm_start import FADED, Prior, faded
from hpstudy.spec import MAX_TRIALS
from hpstudy.study import Choices, Sampler, Study, Value
from hpstudy.study.schema import FORMAT_OF_SEARCH, LEARNING, Direction

MEMORY = "memory"  # the constraint that a trial breaks when it runs out of memory
FITS, EXCEEDS = -1.0, 1.0  # a constraint holds if it is at most 0
GP_TRIALS = 200  # trials after which gp's proposals would take longer than tpe's are worse
MOST_POINTS = 10_000  # of a space in which no point is proposed twice
REMEMBERED = 250  # of the best trials and of the latest, from which tpe and gp learn since format 4

Foreseen = Callable[[FrozenTrial], float]
"""The final loss that a stopped trial would have reached, in nats."""


def first_proposals(study: Study) -> dict[int, dict[str, Value]]:
    """The proposals made without a sampler, by trial: the baseline, if the space holds it, and what rules propose.

    Of a grid, its other points after the baseline.
    """
    baseline = study.baseline_proposal()
    first = [] if baseline is None else [baseline]
    first += [point for point in study.budget.first if point not in first]
    if not study.is_grid:
        rules = {number: trial.values for number, trial in rule_trials(study).items()}
        return dict(enumerate(first)) | rules
    sides = [dimension.values for dimension in study.space.values() if isinstance(dimension, Choices)]
    assert len(sides) == len(study.space), "a grid needs choices in every dimension"
    points = (dict(zip(study.space, point, strict=True)) for point in product(*sides))
    return dict(enumerate([*first, *(point for point in points if point != baseline)]))


def proposer(study: Study, warm_start: Sequence[Prior], foreseen: Foreseen) -> SamplerView | Learner:
    """What proposes the trials after the first proposals, in the way of the study's format; warm as since format 4."""
    learns = study.budget.sampler.name in LEARNING and (study.format >= FORMAT_OF_SEARCH or bool(warm_start))
    return Learner(study, warm_start, foreseen) if learns else SamplerView(study)


def rehearse(study: Study) -> None:
    """Proposes a trial after made-up ones and forgets it, so that all modules that proposals need are loaded.

    That is torch for gp, which takes two seconds, and scipy.stats. It changes no proposal, as each has its own seed.
    """
    space, sampler = distributions(study.space), study.budget.sampler
    if study.is_grid or sampler.name not in LEARNING or study.trials <= sampler.startup:
        return
    points = [_sobol_point(sampler.seed, number, space) for number in range(max(sampler.startup, 2))]
    losses = [[float(number)] * len(study.directions) for number in range(len(points))]
    made_up = [
        create_trial(params=point, distributions=space, values=values)
        for point, values in zip(points, losses, strict=True)
    ]
    for number, trial in enumerate(made_up):
        trial.number = number
    proposer(study, (), lambda _: 0.0).propose(made_up, len(made_up))


class Learner:
    """Proposals of tpe and gp since format 4, and of those that start warm.

    Until `startup` known trials have a result, they are points of a scrambled Sobol sequence. Then the sampler
    proposes, which is shown the REMEMBERED best and the REMEMBERED latest known trials, and later ones as running. So
    it takes no longer after many trials. A stopped trial counts with its foreseen loss. From trial GP_TRIALS on, gp is
    tpe. What other studies' trials still say comes last, and counts as results. In a space of at most MOST_POINTS
    points a proposal that has been tried gives way to the nearest that has not, as a run trained again says nothing.
    """

    def __init__(self, study: Study, warm_start: Sequence[Prior], foreseen: Foreseen) -> None:
        self._study, self._warm_start, self._foreseen = study, warm_start, foreseen
        self._own: list[float] = []  # the first losses, which set the level of other studies' trials
        self._space = distributions(study.space)
        self._num_told = self._num_results = 0
        self._constrained = False
        self._best: list[FrozenTrial] = []  # of one objective the best first, of two the Pareto front
        self._latest: deque[FrozenTrial] = deque(maxlen=REMEMBERED)
        self._forecasts: dict[int, float] = {}  # of stopped trials that were shown, by number
        self._points = _all_points(self._space)

    def propose(self, trials: Sequence[FrozenTrial], num_known: int) -> Params:
        """The proposal after `trials`, of which it may know how the first `num_known` ended."""
        for trial in trials[self._num_told : num_known]:
            self._tell(trial)
        self._num_told = num_known
        sampler, number = self._study.budget.sampler, len(trials)
        earlier = self._earlier()
        if self._num_results + len(earlier) < sampler.startup:
            return _sobol_point(sampler.seed, number, self._space)
        name = "tpe" if number >= GP_TRIALS else sampler.name
        view = _View(
            [*self._running(trials[num_known:]), *self._remembered(), *earlier],
            directions=self._study.directions,
            sampler=_sampler(sampler.model_copy(update={"name": name, "startup": 1}), number),
        )
        params: Params = view.ask(self._space).params
        return self._untried(params, trials)

    def _untried(self, params: Params, trials: Sequence[FrozenTrial]) -> Params:
        """The point nearest to `params` that no trial has had, if the space has so few points that they run out."""
        if self._points is None:
            return params
        tried = {tuple(trial.params[name] for name in self._space) for trial in trials}
        wanted = tuple(params[name] for name in self._space)
        if wanted not in tried or not (left := [point for point in self._points if point not in tried]):
            return params
        spaces = list(self._space.values())
        nearest = min(left, key=lambda point: sum(map(_apart, spaces, point, wanted)))
        return dict(zip(self._space, nearest, strict=True))

    def _tell(self, trial: FrozenTrial) -> None:
        stopped = trial.state is TrialState.PRUNED and trial.intermediate_values
        if not stopped and trial.state is not TrialState.COMPLETE:
            return
        self._num_results += 1
        self._latest.append(trial)
        self._constrained |= is_infeasible(trial)
        if stopped or is_infeasible(trial):
            return
        self._own = [*self._own, trial.values[0]][:FADED]
        if len(self._study.directions) == 1:
            insort(self._best, trial, key=self._losses)
            del self._best[REMEMBERED:]
        elif not any(self._dominates(other, trial) for other in self._best):
            front = [other for other in self._best if not self._dominates(trial, other)]
            self._best = [*front, trial][-REMEMBERED:]

    def _losses(self, trial: FrozenTrial) -> list[float]:
        """The trial's values, lower ones better."""
        signs = (1 if direction == "minimize" else -1 for direction in self._study.directions)
        return [sign * value for sign, value in zip(signs, trial.values, strict=True)]

    def _dominates(self, one: FrozenTrial, other: FrozenTrial) -> bool:
        return all(a <= b for a, b in zip(self._losses(one), self._losses(other), strict=True))

    def _earlier(self) -> list[FrozenTrial]:
        """What other studies' trials still say, as trials behind all others."""
        found = [trial for prior in self._warm_start for trial in faded(prior, self._own)]
        whole = (
            create_trial(params=encode(self._study.space, t.values), distributions=self._space, value=t.loss)
            for t in found
        )
        return [self._shown(trial, MAX_TRIALS + place) for place, trial in enumerate(whole, start=1)]

    def _running(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials whose results are not known yet."""
        return [self._shown(running_trial(self._study.space, trial.params), trial.number) for trial in trials]

    def _remembered(self) -> list[FrozenTrial]:
        """The trials that the sampler learns from, in order. Stopped ones are shown as complete, or GP misses them."""
        trials = {trial.number: trial for trial in (*self._best, *self._latest)}
        for trial in self._latest:
            if trial.state is TrialState.PRUNED:
                if trial.number not in self._forecasts:
                    self._forecasts[trial.number] = self._foreseen(trial)
                whole = trials[trial.number] = copy.copy(trial)
                whole.state, whole.values = TrialState.COMPLETE, [self._forecasts[trial.number]]
        return [self._shown(trials[number], number) for number in sorted(trials)]

    def _shown(self, trial: FrozenTrial, number: int) -> FrozenTrial:
        """A trial for a view, whose own has number 0. GP needs the constraint of all complete trials or of none."""
        shown = copy.copy(trial)
        shown.number = number + 1
        if self._constrained and trial.state is TrialState.COMPLETE and MEMORY not in trial.constraints:
            shown.system_attrs = trial.system_attrs | create_trial(value=0.0, constraints={MEMORY: FITS}).system_attrs
        return shown


def _all_points(space: dict[str, BaseDistribution]) -> list[tuple[Value, ...]] | None:
    """Every point of a space, or None if it has more than MOST_POINTS."""
    sides: list[Sequence[Any]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            sides.append(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            sides.append(range(distribution.low, distribution.high + 1))
        else:
            return None
    return list(product(*sides)) if math.prod(map(len, sides)) <= MOST_POINTS else None


def _apart(distribution: BaseDistribution, one: Value, other: Value) -> float:
    """How far two values are apart, at most 1."""
    if isinstance(distribution, IntDistribution):
        return abs(float(one) - float(other)) / (distribution.high - distribution.low)
    return float(one != other)


class _View(optuna.Study):
    """A study of one trial that is asked, in which its sampler sees other trials. Telling it all of them took long."""

    def __init__(self, shown: list[FrozenTrial], *, directions: Sequence[Direction], sampler: BaseSampler) -> None:
        made = optuna.create_study(directions=directions)
        super().__init__(made.study_name, made._storage, sampler=sampler)
        self._shown = shown

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]


def _sobol_point(seed: int, number: int, space: dict[str, BaseDistribution]) -> Params:
    """Point `number` of a Sobol sequence over the space, scrambled once for the whole study."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = _Sobol(scramble=True, seed=seed)
    sampler.number = number
    study = optuna.create_study()
    params: Params = sampler.sample_relative(study, create_trial(state=TrialState.RUNNING), space)
    return params


class _Sobol(QMCSampler):
    """Optuna's, whose place in the sequence is set instead of counted in a storage."""

    number = 0

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self.number


class SamplerView:
    """The search as the sampler may see it, in memory: known trials as they ended, later ones as running.

    For proposals before format 4, and those of random and qmc. It is kept from trial to trial, which saves building it
    again and changes no proposal. Results of later trials are left out even if they exist by now, because that depends
    on timing.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._space = distributions(study.space)
        self._renew(constrained=False)

    def propose(self, trials: Sequence[FrozenTrial], num_known: int) -> Params:
        """The sampler's proposal after `trials`, of which it may know how the first `num_known` ended."""
        constrained = self._constrained or any(map(is_infeasible, trials[self._num_told : num_known]))
        if constrained != self._constrained:
            self._renew(constrained)
        self._view.sampler = _sampler(self._study.budget.sampler, len(trials))
        for trial in trials[self._num_asked :]:
            self._ask(trial)
        for trial in trials[self._num_told : num_known]:
            self._tell(trial)
        self._num_asked += 1
        params: Params = self._view.ask(self._space).params
        return params

    def _renew(self, constrained: bool) -> None:
        self._view = optuna.create_study(directions=self._study.directions)
        self._num_asked = self._num_told = 0
        self._constrained = constrained

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
        again = Trial(self._view, number)  # in memory, ids are numbers
        for eval_index, loss in trial.intermediate_values.items():
            again.report(loss, eval_index)
        if self._constrained and trial.state is TrialState.COMPLETE:  # GP needs it of all trials or of none
            again.set_constraint(MEMORY, trial.constraints.get(MEMORY, FITS))
        self._view.tell(again, trial.values if trial.state is TrialState.COMPLETE else None, state=trial.state)


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
            # torch, which is not loaded before, reads it. More threads than one wait for cores that train: minutes
            # instead of seconds for 16 proposals
            os.environ.setdefault("OMP_NUM_THREADS", "1")
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
