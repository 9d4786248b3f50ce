"""A study's trials: asked, reported, judged, told, in the order that makes them reproducible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState

from hpstudy.errors import MachineError
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, RunResult, bounded_loss
from hpstudy.search.journal import accessing, open_journal
from hpstudy.search.pruning import Judge
from hpstudy.search.sampling import (
    EXCEEDS,
    MEMORY,
    SamplerView,
    first_proposals,
    is_infeasible,
    num_trials,
    running_trial,
)
from hpstudy.search.space import decode, encode
from hpstudy.study import Study, Value

TrialState = Literal["running", "complete", "infeasible", "pruned", "failed"]

_STATES: dict[OptunaState, TrialState] = {
    OptunaState.RUNNING: "running",
    OptunaState.COMPLETE: "complete",
    OptunaState.PRUNED: "pruned",
    OptunaState.FAIL: "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A trial to train: its number, and its values keyed as in the study's space."""

    number: int
    values: dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """A trial as the journal knows it; `objectives` in the study's order, None unless the trial is complete.

    Infeasible is a trial that ran out of memory: the sampler keeps away from it, and it is never ranked.
    """

    number: int
    values: dict[str, Value]
    state: TrialState
    objectives: tuple[float, ...] | None


def objective_values(study: Study, result: RunResult) -> tuple[float, ...] | None:
    """What Optuna is told of a run, in the order of the study's objectives, or None when it has no value to tell.

    A diverged run is told as ln(vocabulary), so that the sampler learns to keep away; no loss is told above that.
    One that ran out of memory is told as the worst there is: ln(vocabulary), and no token per second.
    """
    if result.outcome not in (Outcome.COMPLETE, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
        return None
    loss = bounded_loss(result.val_loss if result.outcome is Outcome.COMPLETE else None, study.vocab_size)
    speed = 0.0 if result.outcome is Outcome.OUT_OF_MEMORY else result.tok_per_sec
    values: list[float] = []
    for objective in study.objectives:
        value = loss if objective.metric == "val/loss" else speed
        if value is None:
            return None
        values.append(value)
    return tuple(values)


def _ending(study: Study, result: RunResult) -> tuple[OptunaState, tuple[float, ...] | None]:
    """The state and the values that a trial ends with."""
    values = objective_values(study, result)
    if values is not None:
        return OptunaState.COMPLETE, values
    return OptunaState.PRUNED if result.outcome is Outcome.PRUNED else OptunaState.FAIL, None


def _told(study: Study, trial: FrozenTrial, result: RunResult) -> bool:
    """Whether a finished trial is what its run came to; running out of memory was once told as a failure."""
    if result.outcome is Outcome.OUT_OF_MEMORY and trial.state is OptunaState.FAIL:
        return True
    state, values = _ending(study, result)
    infeasible = result.outcome is Outcome.OUT_OF_MEMORY
    same_values = values is None or trial.values == list(values)  # a pruned trial keeps its last report
    return trial.state is state and same_values and is_infeasible(trial) is infeasible


def _is_same(one: object, other: object) -> bool:
    """Whether two values of a hyperparameter are equal but for the rounding of a baseline that was encoded."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return one == other


class Search:
    """A study's trials in an Optuna journal, which is gone on with where it is there; at most `num_trials` of them.

    Only one process may hold a writing Search on a journal, and the caller sees to that. A read-only one may look at
    any time: it makes and mends nothing, sees the trials of that time, and none where none has begun.
    Raises UserError if the journal's trials were proposed from another space, MachineError if the journal is damaged
    before its last event or cannot be written; `mended` says what was done about a damaged last event.
    """

    def __init__(self, study: Study, storage: Path, *, trials: int | None = None, read_only: bool = False) -> None:
        self._study = study
        self._storage = storage
        self._optuna, self.mended = open_journal(study, storage, read_only=read_only)
        self._sampler_view = SamplerView(study)
        self._judge = Judge(study.budget.pruner, study.spec.evals)
        self._first = first_proposals(study)
        self.num_trials = num_trials(study, trials)
        self._reports = [objective.metric for objective in study.objectives] == ["val/loss"]
        assert self._reports or study.budget.pruner.name == "none", "a pruner needs val/loss as the only objective"

    def ask(self) -> Proposal | None:
        """The next trial to start, or None while it waits for results, and when every trial has been asked.

        Trial n is asked once trial n - parallel has been told. Trial 0 is the baseline where the space holds it.
        """
        trials = self._frozen()
        number = len(trials)
        known = self._num_known(number)
        if number >= self.num_trials or not all(trial.state.is_finished() for trial in trials[:known]):
            return None
        if number < len(self._first):
            params = encode(self._study.space, self._first[number])
        else:
            params = self._sampler_view.propose(trials, known)
        with accessing(self._storage):
            self._optuna.add_trial(running_trial(self._study.space, params))  # asked and proposed in one line
        return Proposal(number=number, values=decode(self._study.space, params))

    @property
    def num_asked(self) -> int:
        """How many trials have been asked; their numbers are 0 to one less."""
        return len(self._frozen())

    def pending(self) -> list[Proposal]:
        """Trials asked and not told, in order; after a kill they go on under their numbers."""
        return [Proposal(number=t.number, values=t.values) for t in self.trials() if t.state == "running"]

    def report(self, number: int, eval_index: int, val_loss: float) -> None:
        """Records an evaluation for the pruner; ignored when it is there already, as after a resume.

        Without effect unless val/loss is the only objective.
        """
        trial = self._frozen()[number]
        if self._reports and eval_index not in trial.intermediate_values:
            with accessing(self._storage):
                Trial(self._optuna, trial._trial_id).report(bounded_loss(val_loss, self._study.vocab_size), eval_index)

    def should_stop(self, number: int, eval_index: int) -> bool:
        """Whether the pruner gives a trial up at an evaluation, by its reports so far and trials 0..number-parallel.

        Later reports, of a life that was cut short, are not looked at: a resumed run ends where it would have ended.
        """
        trials = self._frozen()
        told = trials[: self._num_known(number)]
        so_far = {index: loss for index, loss in trials[number].intermediate_values.items() if index <= eval_index}
        return self._judge.stops(told, so_far)

    def tell(self, number: int, result: RunResult) -> None:
        """Records how a trial ended. Trials are told in order of number; the caller holds early results back."""
        trials = self._frozen()
        expected = sum(trial.state.is_finished() for trial in trials)
        assert number == expected, f"trial {expected} must be told next, but got {number}"
        state, values = _ending(self._study, result)
        with accessing(self._storage):
            if result.outcome is Outcome.OUT_OF_MEMORY and not is_infeasible(trials[number]):
                # a line of its own: a kill may leave it alone, and the next life finds it
                Trial(self._optuna, trials[number]._trial_id).set_constraint(MEMORY, EXCEEDS)
            self._optuna.tell(number, values, state=state)

    def check(self, number: int, hparams: HParams, result: RunResult | None) -> None:
        """Raises MachineError unless trial `number` is in the journal as its run is in the run store.

        So a journal that was damaged, lost or taken from elsewhere is noticed before its trials are gone on with.
        """
        trial = self._frozen()[number]
        values = decode(self._study.space, trial.params)
        wrong = [
            f"{key} is {value!r} in it and {there!r} there"
            for key, value in values.items()
            if not _is_same(value, there := getattr(hparams, key))
        ]
        if trial.state.is_finished() and (result is None or not _told(self._study, trial, result)):
            wrong.append(
                f"it ended as {_STATES[trial.state]} {trial.values} in it, which is not the run's result there"
            )
        if wrong:
            raise MachineError(
                f"{self._storage}: trial {number}: must be what its run in the run store was, but {'; '.join(wrong)}; "
                "one of the two is damaged: restore it, or move the journal away and run the same command again: every "
                "trial is proposed again and told what its run came to"
            )

    def trials(self) -> list[TrialView]:
        """Every trial asked so far, in order of number."""
        return [self._view(trial) for trial in self._frozen()]

    def front(self) -> list[TrialView]:
        """The complete trials that no other beats in every objective, in order of number; never an infeasible one."""
        return [self._view(trial) for trial in sorted(self._optuna.best_trials, key=lambda trial: trial.number)]

    def best(self) -> TrialView | None:
        """The complete trial with the best value, the earliest among equals; of a study with one objective."""
        assert len(self._study.objectives) == 1, "two objectives have a front, not a best"
        return next(iter(self.front()), None)

    def _frozen(self) -> list[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False)

    def _num_known(self, number: int) -> int:
        """How many trials, from 0 on, have been told when trial `number` is asked."""
        return max(0, number - self._study.budget.parallel + 1)

    def _view(self, trial: FrozenTrial) -> TrialView:
        state = _STATES[trial.state]
        if state == "complete" and is_infeasible(trial):
            state = "infeasible"
        return TrialView(
            number=trial.number,
            values=decode(self._study.space, trial.params),
            state=state,
            objectives=tuple(trial.values) if state == "complete" else None,
        )
