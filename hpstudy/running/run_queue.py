"""Where runs come from: the trials of a search, or a fixed list.

Both queues hand out runs, and are called back with their steps and results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from hpstudy.hparams import HParams
from hpstudy.records import Phase, Run, RunResult, StepRecord, trial_run_id
from hpstudy.search import Forecast
from hpstudy.study import Study

if TYPE_CHECKING:
    from hpstudy.search import Proposal, Search

AT_ONCE = 4  # results told in a row: a late trial may hold back hundreds, and each proposal takes up to 0.1 s


class TrialQueue:
    """The trials of a search as runs.

    Results are told in order of the trials, and each tell is followed at once by the next ask. So what the sampler knew
    when it proposed trial n is a function of the study file alone, never of timing.
    """

    def __init__(
        self,
        study: Study,
        search: Search,
        budget: Callable[[HParams], int],
        phase: Phase = "search",
        lost: Collection[int] = (),
        later: Callable[[], Sequence[Run]] = lambda: (),
    ) -> None:
        """`lost` are the numbers of finished trials whose runs are gone; these are trained again.

        `later` gives runs of later phases, for workers without a trial while the last ones train.
        """
        from hpstudy.search import Proposal  # Optuna takes half a second to import

        self._study, self._search, self._budget, self._phase = study, search, budget, phase
        self._later = later
        self._given = set[str]()  # runs of later phases that a worker has had
        self._results: dict[int, RunResult] = {}  # results that wait for their turn
        trials = search.trials()
        self._waiting = deque(Proposal(number=t.number, values=t.values) for t in trials if t.number in lost)
        self._waiting += search.pending()  # asked by an earlier session
        self._next_tell = sum(trial.state != "running" for trial in trials)
        while (proposal := search.ask()) is not None:
            self._waiting.append(proposal)
        self._num_asked = search.num_asked  # counted here from now on, as asking it reads the journal

    def next(self) -> Run | None:
        """The next trial as a run on the search seed. If none waits, tells results that are due, which brings one.

        While the last trials train, a run of a later phase.
        """
        while not self._waiting and self._next_tell in self._results:
            self._tell_next()
        if not self._waiting:
            return self._next_later()
        proposal = self._waiting.popleft()
        # use the baseline's own values: encoding and decoding a proposal may change the last bit
        is_baseline = proposal.number == 0 and self._study.baseline_proposal() is not None
        tokens = self._study.spec.tokens
        if tokens is None:
            tokens = self._budget(self._hparams(proposal, None, is_baseline))
        return Run(
            run_id=trial_run_id(self._phase, proposal.number),
            phase=self._phase,
            trial=proposal.number,
            seed=self._study.spec.seed,
            tokens=tokens,
            hparams=self._hparams(proposal, tokens, is_baseline),
        )

    def _next_later(self) -> Run | None:
        last = self._search.num_trials
        if self._num_asked < last or self._next_tell + len(self._results) >= last:
            return None  # more trials come, or all have ended and the phase with them
        run = next((run for run in self._later() if run.run_id not in self._given), None)
        if run is not None:
            self._given.add(run.run_id)
        return run

    def belongs(self, run: Run) -> bool:
        """Whether a run is a trial of this search. Others may train on when the search has ended."""
        return run.phase == self._phase

    def awaits_decision(self, run: Run) -> bool:
        """Whether a run waits for `should_stop` after each of its evaluations."""
        return self._study.budget.pruner.name != "none" and self.belongs(run)

    def _hparams(self, proposal: Proposal, tokens: int | None, is_baseline: bool) -> HParams:
        if is_baseline:
            return self._study.baseline_hparams(tokens)
        return self._study.trial_hparams(proposal.values, tokens)

    def on_step(self, run: Run, record: StepRecord) -> None:
        """Reports an evaluation to the search, if the step has one. A report that the journal has is ignored."""
        if not self.belongs(run):
            return
        assert run.trial is not None
        if record.eval_index is not None and record.val_loss is not None and run.trial >= self._next_tell:
            self._search.report(run.trial, record.eval_index, record.val_loss)

    def should_stop(self, run: Run, record: StepRecord) -> bool:
        """The pruner's decision."""
        assert run.trial is not None
        assert record.eval_index is not None
        return self._search.should_stop(run.trial, record.eval_index)

    def forecast(self, run: Run, record: StepRecord) -> Forecast | None:
        """The pruner's forecast of the final loss, if it makes one."""
        assert run.trial is not None
        assert record.eval_index is not None
        return self._search.forecast(run.trial, record.eval_index)

    def on_result(self, run: Run, result: RunResult) -> None:
        """Tells the results that are due, AT_ONCE at most, and asks for a trial after each; `next` tells the rest.

        A trial that Optuna has as finished is compared instead. Raises MachineError if its result is another now.
        """
        if not self.belongs(run):
            return
        assert run.trial is not None
        if run.trial < self._next_tell:
            self._search.check(run.trial, run.hparams, result)
            return
        self._results[run.trial] = result
        for _ in range(AT_ONCE):
            if self._next_tell in self._results:
                self._tell_next()

    def _tell_next(self) -> None:
        """Tells the result whose turn it is, and asks for a trial."""
        self._search.tell(self._next_tell, self._results.pop(self._next_tell))
        self._next_tell += 1
        if (proposal := self._search.ask()) is not None:
            self._num_asked += 1
            self._waiting.append(proposal)


class RunList:
    """A fixed list of runs, never pruned: the baseline, the runs on fresh seeds."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs_left = deque(runs)
        self._ids = {run.run_id for run in self._runs_left}

    def next(self) -> Run | None:
        """The next run of the list."""
        return self._runs_left.popleft() if self._runs_left else None

    def belongs(self, run: Run) -> bool:
        """Whether a run is one of the list. Others may train on when these have ended."""
        return run.run_id in self._ids

    def awaits_decision(self, run: Run) -> bool:
        """Never."""
        return False

    def on_step(self, run: Run, record: StepRecord) -> None:
        """Does nothing."""

    def should_stop(self, run: Run, record: StepRecord) -> bool:
        """Never."""
        return False

    def forecast(self, run: Run, record: StepRecord) -> Forecast | None:
        """None."""
        return None

    def on_result(self, run: Run, result: RunResult) -> None:
        """Does nothing."""


RunQueue = TrialQueue | RunList
