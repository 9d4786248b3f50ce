"""The plan of a run: batch, learning rate and evaluation of every step, as arithmetic on tokens.

Everything is in tokens, so that runs with different batches share one schedule. With a constant batch this is the usual
schedule in steps, with `it` from 0: (it + 1) / warmup_steps up to the peak, then
floor + (1 - floor) * (1 + cos(pi * (it - warmup_steps) / (decay_steps - warmup_steps))) / 2, then the floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpstudy.hparams import HParams
from hpstudy.records import StepRecord
from hpstudy.spec import TrainerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation measured."""

    val_loss: float  # nats
    bf16_lost: float  # share of the last step's non-zero updates that bf16 weights would round away
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one optimizer step will do."""

    step: int  # from 1
    tokens_before: int
    batch_tokens: int
    lr: float
    eval_index: int | None  # point of the evaluation grid that this step reaches, from 1; None: no evaluation

    @property
    def tokens(self) -> int:
        """Tokens seen after the step."""
        return self.tokens_before + self.batch_tokens

    def micro_batch(self, hparams: HParams, spec: TrainerSpec) -> int:
        """Sequences in one forward pass: the smaller batches of a ramp may not divide by the full micro-batch."""
        return math.gcd(hparams.micro_batch, spec.rank_sequences(self.batch_tokens))

    def record(
        self, figures: Sequence[float], seconds: float, *, micro_batch: int, context: int, evaluation: Evaluation | None
    ) -> StepRecord:
        """What the step measured. `figures`: loss, gradient norm, whether clipped, ||update|| / ||weights||."""
        loss, grad_norm, clipped, update_to_weight = figures
        return StepRecord(
            step=self.step,
            tokens=self.tokens,
            loss=loss,
            grad_norm=grad_norm,
            clipped=bool(clipped),
            lr=self.lr,
            update_to_weight=update_to_weight,
            batch_tokens=self.batch_tokens,
            micro_batch=micro_batch,
            accumulation=self.batch_tokens // (micro_batch * context),
            step_seconds=seconds,
            tok_per_sec=self.batch_tokens / seconds,
            eval_index=self.eval_index,
            val_loss=evaluation.val_loss if evaluation else None,
            eval_seconds=evaluation.seconds if evaluation else None,
            bf16_lost=evaluation.bf16_lost if evaluation else None,
        )


def learning_rate(hparams: HParams, tokens_before: int, batch_tokens: int, budget: int) -> float:
    """The learning rate of the step that starts at `tokens_before` of a run of `budget` tokens.

    Linear warm-up, then cosine to a floor. Source: Brown et al. 2020, arXiv:2005.14165, appendix B.
    """
    warmup = hparams.warmup_fraction * budget
    decay_end = hparams.decay_fraction * budget
    if tokens_before < warmup:
        return hparams.lr * min(1.0, (tokens_before + batch_tokens) / warmup)
    floor = hparams.lr * hparams.min_lr_fraction
    if tokens_before >= decay_end:
        return floor
    progress = (tokens_before - warmup) / (decay_end - warmup)
    return floor + (hparams.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ramped_batch(hparams: HParams, tokens_before: int, budget: int, unit: int) -> int:
    """Tokens of the step that starts at `tokens_before`: linear from batch_ramp_start to the full batch.

    Rounded down to a multiple of `unit` tokens, and at least one unit.
    """
    ramp = hparams.batch_ramp_fraction * budget
    if tokens_before >= ramp:
        return hparams.batch_tokens
    share = hparams.batch_ramp_start + (1.0 - hparams.batch_ramp_start) * tokens_before / ramp
    return min(hparams.batch_tokens, max(unit, int(hparams.batch_tokens * share) // unit * unit))


def extent(hparams: HParams, *, budget: int, unit: int) -> tuple[int, int]:
    """(steps, tokens) of a run of `budget` tokens, without planning each step after the ramp."""
    steps, tokens = 0, 0
    while (batch := ramped_batch(hparams, tokens, budget, unit)) < hparams.batch_tokens and tokens + batch <= budget:
        steps, tokens = steps + 1, tokens + batch
    rest = (budget - tokens) // hparams.batch_tokens if batch == hparams.batch_tokens else 0
    return steps + rest, tokens + rest * hparams.batch_tokens


def plan(hparams: HParams, *, budget: int, unit: int, evals: int) -> Iterator[StepPlan]:
    """Every step of a run of `budget` tokens. Without a ramp there are floor(budget / batch_tokens) steps.

    Evaluations are due on a grid of `evals` points equally spaced in tokens. The first step that reaches a point
    evaluates, and the last step always does, as point `evals`. A step that reaches several points takes the last.
    """
    step, tokens, reached = 0, 0, 0
    batch = ramped_batch(hparams, 0, budget, unit)
    while tokens + batch <= budget:
        step += 1
        after = tokens + batch
        next_batch = ramped_batch(hparams, after, budget, unit)
        last = after + next_batch > budget
        point = evals if last else after * evals // budget
        yield StepPlan(
            step=step,
            tokens_before=tokens,
            batch_tokens=batch,
            lr=learning_rate(hparams, tokens, batch, budget),
            eval_index=point if point > reached else None,
        )
        tokens, batch, reached = after, next_batch, max(reached, point)
