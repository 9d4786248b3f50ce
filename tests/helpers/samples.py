"""Headers, records and results like those of a real study."""

from __future__ import annotations

from dataclasses import replace

from hpstudy.hparams import GPT3, derived
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord


def header(
    run_id: str = "search-0007",
    *,
    phase: Phase = "search",
    trial: int | None = 7,
    seed: int = 0,
    of: str | None = None,
    fraction: float = 1.0,
    wandb_id: str = "id",
) -> RunHeader:
    """A run of 20 steps with an infinite timescale, because its weights do not decay."""
    run = Run(
        run_id=run_id,
        phase=phase,
        trial=trial,
        seed=seed,
        tokens=81_920,
        hparams=replace(GPT3, lr=1e-3, batch_tokens=4096, weight_decay=0.0),
        of=of,
        fraction=fraction,
    )
    return RunHeader(
        run=run,
        study="quickstart",
        wandb_id=wandb_id,
        derived=derived(run.hparams),
        num_params=123_456,
        started="2026-11-23T12:00:00Z",
    )


def record(step: int, *, loss: float | None = None, evaluated: bool = False) -> StepRecord:
    """A step of that run; its loss falls with the steps unless it is given."""
    return StepRecord(
        step=step,
        tokens=4096 * step,
        loss=10.8 / step if loss is None else loss,
        grad_norm=1 / 3,
        clipped=step == 1,
        lr=1e-3 * step,
        update_to_weight=1e-300,
        batch_tokens=4096,
        micro_batch=16,
        accumulation=2,
        step_seconds=0.01,
        tok_per_sec=409_600.0,
        val_loss=5.0 if evaluated else None,
        eval_index=1 if evaluated else None,
        eval_seconds=0.5 if evaluated else None,
    )


def result(outcome: Outcome = Outcome.COMPLETE, *, steps: int = 20, train_loss: float = 0.54) -> RunResult:
    """How that run ended."""
    return RunResult(
        outcome=outcome,
        steps=steps,
        tokens=4096 * steps,
        val_loss=5.0,
        best_val_loss=4.9,
        train_loss=train_loss,
        tok_per_sec=409_600.0,
        train_seconds=0.01 * steps,
        clipped_share=0.05,
    )
