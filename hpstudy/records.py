"""What one run is, what one step measured, how a run ended; and the glossary of every metric."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hpstudy.hparams import HParams

Phase = Literal["search", "baseline", "confirm", "tuned-lr"]


class Outcome(enum.StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training to do: one set of hyperparameters, one seed, one token budget. `run_id` names its folder."""

    run_id: str  # search-0007, baseline-s101, confirm-0007-s101
    phase: Phase
    trial: int | None  # Optuna's number, None for runs that are no trial
    seed: int
    tokens: int
    hparams: HParams

    def packs_with(self, other: Run) -> bool:
        """Whether both have the same batches in every step, so that they can train as one stacked model."""
        keys = ("batch_tokens", "micro_batch", "batch_ramp_fraction", "batch_ramp_start")
        return self.tokens == other.tokens and all(getattr(self.hparams, k) == getattr(other.hparams, k) for k in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What is known before step 1; written as header.json before anything else."""

    run: Run
    study: str
    wandb_id: str
    derived: dict[str, float]  # half-lives in tokens, decay timescale in steps
    num_params: int
    started: str  # ISO 8601, UTC


def _metric(name: str, unit: str, doc: str) -> dict[str, str]:
    return {"metric": name, "unit": unit, "doc": doc}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one optimizer step measured. The last fields are None on steps that did not evaluate."""

    step: int = field(metadata=_metric("step", "steps", "optimizer updates done, from 1"))
    tokens: int = field(metadata=_metric("tokens", "tokens", "training tokens seen, this step included"))
    loss: float = field(metadata=_metric("train/loss", "nats", "mean cross-entropy over the whole accumulated batch"))
    grad_norm: float = field(metadata=_metric("train/grad_norm", "", "global gradient norm before clipping"))
    clipped: bool = field(metadata=_metric("train/clipped", "", "whether clipping scaled any gradient down"))
    lr: float = field(metadata=_metric("train/lr", "", "learning rate of this update"))
    update_to_weight: float = field(
        metadata=_metric("train/update_to_weight", "", "‖update‖ / ‖weights‖ over all parameters")
    )
    batch_tokens: int = field(metadata=_metric("train/batch_tokens", "tokens", "tokens in this step's batch"))
    micro_batch: int = field(metadata=_metric("train/micro_batch", "sequences", "sequences in one forward pass"))
    accumulation: int = field(metadata=_metric("train/accumulation", "micro-batches", "micro-batches in this step"))
    step_seconds: float = field(
        metadata=_metric("train/step_seconds", "s", "wall time of the step, evaluation excluded")
    )
    tok_per_sec: float = field(metadata=_metric("train/tok_per_sec", "tokens/s", "batch_tokens / step_seconds"))
    val_loss: float | None = field(
        default=None, metadata=_metric("val/loss", "nats", "mean cross-entropy over the validation tokens")
    )
    eval_index: int | None = field(
        default=None, metadata=_metric("val/index", "", "point of the evaluation grid, from 1 to evals")
    )
    eval_seconds: float | None = field(
        default=None, metadata=_metric("val/seconds", "s", "wall time of the evaluation")
    )
    bf16_lost: float | None = field(
        default=None,
        metadata=_metric(
            "val/bf16_lost", "", "share of this step's non-zero updates that bf16 weights would round away"
        ),
    )

    @property
    def evaluated(self) -> bool:
        """Whether an evaluation followed this step."""
        return self.val_loss is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the glossary."""

    name: str
    unit: str
    doc: str


GLOSSARY: dict[str, Metric] = {
    f.name: Metric(name=f.metadata["metric"], unit=f.metadata["unit"], doc=f.metadata["doc"])
    for f in fields(StepRecord)
}
"""StepRecord's field -> metric; the metric's name is the key in steps.jsonl, on W&B and in the steps table."""


def as_row(record: StepRecord) -> dict[str, Any]:
    """A record as {metric name: value}, without the metrics of an evaluation that did not happen."""
    return {m.name: value for key, m in GLOSSARY.items() if (value := getattr(record, key)) is not None}


def from_row(row: dict[str, Any]) -> StepRecord:
    """The record that `as_row` made the row from; unknown keys are ignored, so that newer stores still load."""
    return StepRecord(**{key: row[m.name] for key, m in GLOSSARY.items() if m.name in row})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended and the figures that summarise it; written as result.json after the last step."""

    outcome: Outcome
    steps: int
    tokens: int
    val_loss: float | None  # of the last evaluation, nats
    best_val_loss: float | None
    train_loss: float | None  # of the last step, nats
    tok_per_sec: float | None  # median over steps after the first 5, evaluation excluded
    train_seconds: float  # sum of step seconds
    clipped_share: float | None  # of the steps
    message: str = ""  # why it failed, for humans


def bounded_loss(loss: float | None, vocab_size: int) -> float:
    """min(loss, ln(vocab_size)), so that a diverged run ranks with a uniform guess and never above a finite loss."""
    ceiling = math.log(vocab_size)
    return ceiling if loss is None or not math.isfinite(loss) else min(loss, ceiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a set of hyperparameters trains on a device, from a few timed steps."""

    step_seconds: float  # median of a full-batch step, evaluation excluded
    eval_seconds: float  # one evaluation
