"""When a run counts as diverged."""

from __future__ import annotations

import math

PATIENCE_STEPS = 20
MARGIN_NATS = 1.0


class DivergenceWatch:
    """Watches one run for divergence.

    A run has diverged if its loss or gradient norm is not finite, or if after warm-up its train loss stays above
    ln(vocabulary) + 1 for 20 steps in a row.
    """

    def __init__(self, vocab_size: int) -> None:
        self._limit = math.log(vocab_size) + MARGIN_NATS
        self.bad_steps = 0  # in a row

    def diverged(self, *, loss: float, grad_norm: float, warming_up: bool) -> bool:
        """Whether the run has diverged with this step. Call it once per step, in order."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return True
        self.bad_steps = self.bad_steps + 1 if loss > self._limit and not warming_up else 0
        return self.bad_steps >= PATIENCE_STEPS
