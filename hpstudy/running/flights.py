"""A run in the air: what its worker reports on its way to the sinks, and what is known of it from before."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from hpstudy.records import Outcome, Run, RunHeader, RunResult, StepRecord
from hpstudy.running.awake import AwakeClock
from hpstudy.running.interface import Progress
from hpstudy.running.summary import RunSummary
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink
from hpstudy.training.divergence import DivergenceWatch

CHECKPOINT_SHARE = 0.02  # of a run's time at most goes into its checkpoints


class Flight:
    """One run between its worker and the sinks: the run store first, then W&B and the view.

    A run that began before goes on: its recorded steps pass through the sinks again, and those that are then trained
    again are compared and not written. `alone` is False for a run of a pack, which repeats to rounding only: it
    begins anew.
    """

    def __init__(
        self,
        header: RunHeader,
        store: RunStore,
        wandb: WandbSink,
        progress: Progress,
        *,
        clock: AwakeClock,
        deaths: int,
        furthest: int,
        alone: bool,
        checkpoint_seconds: float,
    ) -> None:
        self.run: Run = header.run
        self.deaths = deaths
        """Of workers under it, since the last step that no earlier life had recorded."""
        self.shared = False
        """Whether it trains with others as one, whose fate need not be its own."""
        self._wandb, self._progress = wandb, progress
        self._summary = RunSummary()
        self._writer = store.begin(header, anew=not alone)
        folder = store.folder(self.run.run_id)
        self._checkpoint, self.part = folder / "checkpoint.pt", folder / "checkpoint.pt.part"
        self._alone, self._checkpoint_seconds = alone, checkpoint_seconds
        self._clock, self._heard, self._ordered = clock, clock.look(), time.monotonic()
        self.saving = False
        """Whether its worker has an order to write a checkpoint: one at a time, all go to the same place."""
        self._complained = False
        if not alone:
            self._checkpoint.unlink(missing_ok=True)
        wandb.begin(header)
        progress.start(self.run)
        if self._writer.cut:
            progress.say(f"{self.run.run_id}: {self._writer.cut} damaged bytes at the end of its steps were cut off")
        for record in self._writer.recorded:
            self._pass_on(record)
        self.furthest = max(furthest, len(self._writer.recorded))
        """The last step that this life or an earlier one recorded."""

    @property
    def recorded(self) -> list[StepRecord]:
        """The steps of earlier lives."""
        return self._writer.recorded

    @property
    def checkpoint(self) -> Path | None:
        """The file to go on from, where there is one."""
        return self._checkpoint if self._checkpoint.exists() else None

    def record(self, record: StepRecord) -> None:
        """Takes in a step. Raises MachineError when it was recorded before with other figures."""
        if record.step > self.furthest:
            self.furthest, self.deaths = record.step, 0
        if self._writer.append(record):
            self._pass_on(record)

    def _pass_on(self, record: StepRecord) -> None:
        self._summary.add(record)
        self._wandb.log(self.run.run_id, record)
        self._progress.step(self.run, record)

    def silent_seconds(self) -> float:
        """Since its worker was last heard."""
        return self._clock.look() - self._heard

    def heard(self) -> float:
        """Its worker was heard, after the seconds of silence that are returned."""
        silent = self.silent_seconds()
        self._heard += silent
        return silent

    def wants_checkpoint(self, *, now: bool = False) -> bool:
        """Whether its worker shall be told to write one; true once per interval, or at once."""
        due = now or time.monotonic() - self._ordered >= self._checkpoint_seconds
        if not self._alone or self.saving or not due:
            return False
        self._ordered, self.saving = time.monotonic(), True
        return True

    def checkpointed(self, seconds: float, problem: str) -> None:
        """A checkpoint was written beside the one before, whose place it takes once its steps are durable."""
        self.saving = False
        if problem:
            if not self._complained:
                self._progress.say(f"{self.run.run_id}: no checkpoint could be written ({problem}); it trains on")
            self._complained = True
            return
        self._writer.sync()
        with contextlib.suppress(FileNotFoundError):
            self.part.replace(self._checkpoint)
        if self._checkpoint_seconds:
            self._checkpoint_seconds = max(self._checkpoint_seconds, seconds / CHECKPOINT_SHARE)

    def finish(self, outcome: Outcome, message: str) -> RunResult:
        """Writes the result, and takes the checkpoint away."""
        result = self._summary.result(outcome, message)
        self._writer.finish(result)
        self._forget()
        self._wandb.finish(self.run.run_id, result)
        self._progress.finish(self.run, result)
        return result

    def abandon(self, *, forget: bool = False) -> None:
        """Leaves the run without a result; `forget` what it could go on from."""
        self._writer.close()
        self._wandb.abandon(self.run.run_id)
        if forget:
            self._forget()

    def _forget(self) -> None:
        for path in (self._checkpoint, self.part):
            with contextlib.suppress(OSError):
                path.unlink()


def ended_before(run: Run, recorded: list[StepRecord], vocab_size: int, evals: int) -> Outcome | None:
    """How a run ended whose result was not written any more, or None where its last step is not recorded.

    A prune cannot be told from the records.
    """
    watch = DivergenceWatch(vocab_size)
    for record in recorded:
        if watch.diverged(
            loss=record.loss,
            grad_norm=record.grad_norm,
            warming_up=record.tokens <= run.hparams.warmup_fraction * run.tokens,
        ):
            return Outcome.DIVERGED
    return Outcome.COMPLETE if recorded and recorded[-1].eval_index == evals else None


def with_smaller_micro_batch(run: Run, context: int) -> Run | None:
    """The run at the next smaller divisor of its batch, which changes its memory and not its loss; None below 1."""
    sequences = run.hparams.batch_tokens // context
    size = max((size for size in range(1, run.hparams.micro_batch) if sequences % size == 0), default=None)
    return None if size is None else replace(run, hparams=replace(run.hparams, micro_batch=size))
