"""Where the driver's runs come from: the search, or a fixed list."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from hpstudy.hparams import HParams
from hpstudy.records import Phase, Run, RunResult, StepRecord
from hpstudy.search import Proposal, Search
from hpstudy.study import Study


class Source(Protocol):
    """Hands out runs and hears of their fate."""

    judged: bool  # whether a run waits for `should_stop` after each of its evaluations

    def next(self) -> Run | None:
        """The next run to train, or None while there is none."""

    def heard(self, run: Run, record: StepRecord) -> None:
        """A run was evaluated."""

    def should_stop(self, run: Run, record: StepRecord) -> bool:
        """Whether a judged run shall end at this evaluation."""

    def ended(self, run: Run, result: RunResult) -> None:
        """A run has a result, which is on disk."""


class Trials:
    """The search's trials as runs.

    Results are told in the order of the trials, and each tell is followed at once by the next ask, so that what the
    sampler saw when it proposed trial n is a function of the study file alone, never of timing.
    """

    def __init__(self, study: Study, search: Search, budget: Callable[[HParams], int], phase: Phase = "search") -> None:
        self._study, self._search, self._budget, self._phase = study, search, budget, phase
        self._results: dict[int, RunResult] = {}
        self._waiting: deque[Proposal] = deque(search.pending())  # asked before this process began
        self._next_tell = sum(trial.state != "running" for trial in search.trials())
        self.judged = study.budget.pruner.name != "none"
        while (proposal := search.ask()) is not None:
            self._waiting.append(proposal)

    def next(self) -> Run | None:
        """The next trial as a run at the search seed."""
        if not self._waiting:
            return None
        proposal = self._waiting.popleft()
        # the baseline is no decoded proposal but itself, to the last bit
        is_baseline = proposal.number == 0 and self._study.baseline_proposal() is not None
        tokens = self._study.spec.tokens
        if tokens is None:
            untimed = self._study.baseline_hparams(None) if is_baseline else self._hparams(proposal, None)
            tokens = self._budget(untimed)
        hparams = self._study.baseline_hparams(tokens) if is_baseline else self._hparams(proposal, tokens)
        return Run(
            run_id=f"{self._phase}-{proposal.number:04d}",
            phase=self._phase,
            trial=proposal.number,
            seed=self._study.spec.seed,
            tokens=tokens,
            hparams=hparams,
        )

    def _hparams(self, proposal: Proposal, tokens: int | None) -> HParams:
        return self._study.trial_hparams(proposal.values, tokens)

    def heard(self, run: Run, record: StepRecord) -> None:
        """Reports an evaluation to the search."""
        assert run.trial is not None
        assert record.eval_index is not None
        assert record.val_loss is not None
        self._search.report(run.trial, record.eval_index, record.val_loss)

    def should_stop(self, run: Run, record: StepRecord) -> bool:
        """The pruner's word."""
        assert run.trial is not None
        assert record.eval_index is not None
        return self._search.should_stop(run.trial, record.eval_index)

    def ended(self, run: Run, result: RunResult) -> None:
        """Tells every result whose turn has come."""
        assert run.trial is not None
        self._results[run.trial] = result
        while self._next_tell in self._results:
            self._search.tell(self._next_tell, self._results.pop(self._next_tell))
            self._next_tell += 1
            if (proposal := self._search.ask()) is not None:
                self._waiting.append(proposal)


class Fixed:
    """A list of runs, never pruned: the baseline, confirm runs."""

    judged = False

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = deque(runs)

    def next(self) -> Run | None:
        """The next of the list."""
        return self._runs.popleft() if self._runs else None

    def heard(self, run: Run, record: StepRecord) -> None:
        """Nobody waits for it."""

    def should_stop(self, run: Run, record: StepRecord) -> bool:
        """Never."""
        return False

    def ended(self, run: Run, result: RunResult) -> None:
        """Nobody waits for it."""
