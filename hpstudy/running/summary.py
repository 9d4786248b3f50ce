"""A run's records -> the figures of its result."""

from __future__ import annotations

import math
import statistics

from hpstudy.records import SETTLING_STEPS, Outcome, RunResult, StepRecord


class RunSummary:
    """Collects the records of one run, in order."""

    def __init__(self) -> None:
        self._last: StepRecord | None = None
        self._val_losses: list[float] = []
        self._tok_per_sec: list[float] = []
        self._ramp_steps = 0  # before the first step of the last batch size
        self._seconds = 0.0
        self._clipped = 0

    def add(self, record: StepRecord) -> None:
        """Adds one step."""
        if self._last and record.batch_tokens != self._last.batch_tokens:
            self._ramp_steps = len(self._tok_per_sec)
        self._last = record
        self._tok_per_sec.append(record.tok_per_sec)
        self._seconds += record.step_seconds
        self._clipped += record.clipped
        if record.val_loss is not None:
            self._val_losses.append(record.val_loss)

    def result(self, outcome: Outcome, message: str = "") -> RunResult:
        """The result if the run ends here."""
        last, losses = self._last, self._val_losses
        speeds = self._speeds()
        finite = [loss for loss in losses if math.isfinite(loss)]
        return RunResult(
            outcome=outcome,
            steps=last.step if last else 0,
            tokens=last.tokens if last else 0,
            val_loss=losses[-1] if losses and outcome is not Outcome.DIVERGED else None,
            best_val_loss=min(finite, default=None),
            train_loss=last.loss if last else None,
            tok_per_sec=statistics.median(speeds) if speeds else None,
            train_seconds=self._seconds,
            clipped_share=self._clipped / last.step if last else None,
            message=message,
        )

    def _speeds(self) -> list[float]:
        """The tokens per second of the steps that count: settled ones at the full batch, whose shape no longer changes.

        Of a run too short for that: those after the first SETTLING_STEPS, or all.
        """
        every = self._tok_per_sec
        return every[self._ramp_steps + SETTLING_STEPS :] or every[SETTLING_STEPS:] or every
