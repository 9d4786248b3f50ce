"""When a run counts as diverged."""

from __future__ import annotations

import math

from hpstudy.records import Run, StepRecord

PATIENCE_STEPS = 20
MARGIN_NATS = 1.0


class DivergenceWatch:
    """Watches one run for divergence.

    A run has diverged if its loss or gradient norm is not finite, or if after warm-up its train loss stays above
    ln(vocabulary) + 1 for 20 steps in a row.
    """

    def __init__(self, run: Run, vocab_size: int) -> None:
        self._limit = math.log(vocab_size) + MARGIN_NATS
        self._warmup_tokens = run.hparams.warmup_fraction * run.tokens
        self.bad_steps = 0  # in a row

    def diverged(self, record: StepRecord) -> bool:
        """Whether the run has diverged with this step. Call it once per step, in order."""
        if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
            return True
        bad = record.loss > self._limit and record.tokens > self._warmup_tokens
        self.bad_steps = self.bad_steps + 1 if bad else 0
        return self.bad_steps >= PATIENCE_STEPS
