"""A study's trials: asked, reported, stopped, told, in the order that makes them reproducible."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Literal

from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState

from hpstudy.errors import MachineError
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, RunResult, bounded_loss, losses_are_close
from hpstudy.search.foresight import Curve, Decision, Forecast, foresight
from hpstudy.search.journal import accessing, is_infeasible, open_journal
from hpstudy.search.pruning import TrialPruner
from hpstudy.search.sampling import (
    EXCEEDS,
    MEMORY,
    first_proposals,
    proposer,
    running_trial,
)
from hpstudy.search.space import decode, encode
from hpstudy.search.warm_start import Prior
from hpstudy.study import Study, Value, num_trials

TrialState = Literal["running", "complete", "infeasible", "pruned", "failed"]

_STATES: dict[OptunaState, TrialState] = {
    OptunaState.RUNNING: "running",
    OptunaState.COMPLETE: "complete",
    OptunaState.PRUNED: "pruned",
    OptunaState.FAIL: "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A trial to train."""

    number: int
    values: dict[str, Value]  # keyed as in the study's space


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """A trial as the journal holds it.

    State "infeasible" means out of memory: the sampler avoids such trials, and they are never ranked.
    """

    number: int
    values: dict[str, Value]
    state: TrialState
    objectives: tuple[float, ...] | None  # in the study's order; None unless the trial is complete


def objective_values(study: Study, result: RunResult) -> tuple[float, ...] | None:
    """The values that Optuna gets for a run, in the order of the study's objectives, or None if there are none.

    A diverged run gets ln(vocabulary), so that the sampler learns to avoid it, and no loss counts as more. A run
    that ran out of memory gets the worst values there are: ln(vocabulary), and 0 tokens per second.
    """
    if result.outcome not in (Outcome.COMPLETE, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
        return None
    loss = bounded_loss(result.val_loss if result.outcome is Outcome.COMPLETE else None, study.vocab_size)
    speed = 0.0 if result.outcome is Outcome.OUT_OF_MEMORY else result.tok_per_sec
    values: list[float] = []
    for metric in study.metrics:
        value = loss if metric == "val/loss" else speed
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


def _agrees(study: Study, trial: FrozenTrial, result: RunResult, *, exact: bool) -> bool:
    """Whether the journal agrees with the run's result. Older versions recorded out of memory as a failure."""
    if result.outcome is Outcome.OUT_OF_MEMORY and trial.state is OptunaState.FAIL:
        return True
    state, values = _ending(study, result)
    infeasible = result.outcome is Outcome.OUT_OF_MEMORY
    # a pruned trial keeps its last report
    same_values = values is None or trial.values == list(values) or (not exact and _are_close(trial.values, values))
    return trial.state is state and same_values and is_infeasible(trial) is infeasible


def _are_close(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether losses are equal up to what other code may round."""
    return all(starmap(losses_are_close, zip(ours, theirs, strict=True)))


def _is_same(one: object, other: object) -> bool:
    """Whether two values are equal up to the rounding of an encoded baseline."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return one == other


class Search:
    """A study's trials in an Optuna journal, at most `num_trials` of them. Opens the journal, or creates it.

    The caller must make sure that only one process holds a writing Search on a journal. A `read_only` one may be opened
    at any time: it changes nothing and sees the trials of that moment. `warm_start` holds trials of other studies,
    which the sampler knows from the start, and which are none of this study's. If `exact` says no, because other code
    may have trained a run again, its losses need only agree within rounding.
    Raises UserError if the journal's trials were proposed from another space, MachineError if the journal is damaged
    before its last event or cannot be written. `repaired` says what was done about a damaged last event.
    """

    def __init__(
        self,
        study: Study,
        storage: Path,
        *,
        trials: int | None = None,
        read_only: bool = False,
        warm_start: Sequence[Prior] = (),
        exact: Callable[[], bool] = lambda: True,
    ) -> None:
        self._study = study
        self._exact = exact
        self._storage = storage
        self._optuna, self.repaired = open_journal(study, storage, read_only=read_only)
        self._proposer = proposer(study, warm_start, self._foreseen)
        self._pruner = TrialPruner(study.budget.pruner, study.spec.evals)
        self._foresight = foresight(study)
        self._curves: list[Curve] = []  # of finished trials
        self._last_forecast: tuple[int, int, Forecast | None] = (-1, -1, None)  # trial, evaluation; asked for twice
        self._first = first_proposals(study)
        self.num_trials = num_trials(study, trials)
        self._reports = study.metrics == ("val/loss",)
        assert self._reports or study.budget.pruner.name == "none", "a pruner needs val/loss as the only objective"

    def ask(self) -> Proposal | None:
        """The next trial to start, or None while it must wait for results, or when all have been asked.

        Trial n is asked once trial n - parallel has been told. Trial 0 is the baseline if the space holds it.
        """
        trials = self._frozen()
        number = len(trials)
        known = self._study.budget.num_known(number)
        if number >= self.num_trials or not all(trial.state.is_finished() for trial in trials[:known]):
            return None
        if number in self._first:
            params = encode(self._study.space, self._first[number])
        else:
            params = self._proposer.propose(trials, known)
        with accessing(self._storage):
            self._optuna.add_trial(running_trial(self._study.space, params))  # asked and proposed in one line
        return Proposal(number=number, values=decode(self._study.space, params))

    @property
    def num_asked(self) -> int:
        """How many trials have been asked; their numbers start at 0."""
        return len(self._frozen())

    def pending(self) -> list[Proposal]:
        """Trials asked and not told, in order. After a kill they continue under their numbers."""
        return [Proposal(number=t.number, values=t.values) for t in self.trials() if t.state == "running"]

    def report(self, number: int, eval_index: int, val_loss: float) -> None:
        """Records an evaluation for the pruner. Ignored if it is there already, as after a resume.

        No effect unless val/loss is the only objective.
        """
        trial = self._frozen()[number]
        if self._reports and eval_index not in trial.intermediate_values:
            with accessing(self._storage):
                Trial(self._optuna, trial._trial_id).report(bounded_loss(val_loss, self._study.vocab_size), eval_index)

    def should_stop(self, number: int, eval_index: int) -> bool:
        """Whether the pruner stops a trial at an evaluation, given its reports so far and trials 0..number-parallel.

        Later reports, left by an interrupted attempt, are ignored: a resumed run ends where it would have ended.
        """
        trials = self._frozen()
        if self._foresight is not None:
            finished, curve = self._seen(trials, number, eval_index)
            found = self.forecast(number, eval_index)
            return self._foresight.decision(finished, curve, eval_index, found) is Decision.STOP
        known = trials[: self._study.budget.num_known(number)]
        so_far = {index: loss for index, loss in trials[number].intermediate_values.items() if index <= eval_index}
        return self._pruner.stops(known, so_far)

    def forecast(self, number: int, eval_index: int) -> Forecast | None:
        """What foresight expects of a trial's final loss at an evaluation, from what `should_stop` may use.

        None with other pruners, or while too few trials have ended.
        """
        if self._foresight is None:
            return None
        if self._last_forecast[:2] != (number, eval_index):
            finished, curve = self._seen(self._frozen(), number, eval_index)
            self._last_forecast = number, eval_index, self._foresight.forecast(finished, curve, eval_index)
        return self._last_forecast[2]

    def tell(self, number: int, result: RunResult) -> None:
        """Records how a trial ended. Trials must be told in order of number; the caller holds early results back."""
        trials = self._frozen()
        expected = sum(trial.state.is_finished() for trial in trials)
        assert number == expected, f"trial {expected} must be told next, but got {number}"
        state, values = _ending(self._study, result)
        with accessing(self._storage):
            if result.outcome is Outcome.OUT_OF_MEMORY and not is_infeasible(trials[number]):
                # a line of its own: if a kill follows it, the next attempt finds the constraint and tells the rest
                Trial(self._optuna, trials[number]._trial_id).set_constraint(MEMORY, EXCEEDS)
            self._optuna.tell(number, values, state=state)

    def check(self, number: int, hparams: HParams, result: RunResult | None) -> None:
        """Raises MachineError unless trial `number` of the journal agrees with its run in the run store.

        This catches a journal that was damaged, lost or copied from elsewhere before its trials are resumed. A run
        without a result is trained, again if it must be, so only its values are compared.
        """
        trial = self._frozen()[number]
        values = decode(self._study.space, trial.params)
        wrong = [
            f"{key} is {value!r} in it and {there!r} there"
            for key, value in self._study.raw(values).items()
            if not _is_same(value, there := getattr(hparams, key))
        ]
        if (
            trial.state.is_finished()
            and result is not None
            and not _agrees(self._study, trial, result, exact=self._exact())
        ):
            wrong.append(
                f"it ended as {_STATES[trial.state]} {trial.values} in it, which is not the run's result there"
            )
        if wrong:
            raise MachineError(
                f"{self._storage}: trial {number}: must agree with its run in the run store, but {'; '.join(wrong)}; "
                "one of the two is damaged: restore it, or move the journal away and run the same command again: every "
                "trial is proposed again and gets the result of its run"
            )

    def trials(self) -> list[TrialView]:
        """Every trial asked so far, in order of number."""
        return [self._view(trial) for trial in self._frozen()]

    def _foreseen(self, trial: FrozenTrial) -> float:
        """The final loss of a stopped trial as it was forecast when it stopped; its last loss without a forecast."""
        last = max(trial.intermediate_values)
        found = self.forecast(trial.number, last)
        return trial.intermediate_values[last] if found is None else found.loss

    def _seen(self, trials: Sequence[FrozenTrial], number: int, eval_index: int) -> tuple[list[Curve], Curve]:
        """What foresight may use at an evaluation: the finished trials that the trial may know, and its own losses."""
        known = self._study.budget.num_known(number)
        self._curves += [self._curve(trial, trial.intermediate_values) for trial in trials[len(self._curves) : known]]
        curve = self._curve(trials[number], trials[number].intermediate_values)
        return self._curves[:known], curve.until(eval_index)

    def _curve(self, trial: FrozenTrial, losses: Mapping[int, float]) -> Curve:
        """What foresight sees of a trial."""
        values = decode(self._study.space, trial.params)
        hparams = self._study.trial_hparams(values, self._study.spec.tokens)
        return Curve(number=trial.number, hparams=hparams, losses=losses)

    def _frozen(self) -> list[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False)

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
