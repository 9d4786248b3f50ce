"""Writes studies whose runs end at losses of one's choice into a real run store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hpstudy.analysis.frames import StudyFrames, load
from hpstudy.hparams import GPT3, derived
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord
from hpstudy.tracking.store import RunStore

BUDGET, BATCH = 8192, 256
RUN = re.compile(r"(?P<phase>search|baseline|confirm|tuned-lr)(?:-tuned-lr)?(?:-(?P<trial>\d{4}))?(?:-s(?P<seed>\d+))?")


def stored(
    root: Path, ends: Mapping[str, float | Outcome | None], *, speed: Mapping[str, float] | None = None
) -> StudyFrames:
    """The frames of a store with these runs: ended at a loss, with another outcome, or unfinished (None).

    Every run has four evaluations on a line in its tokens from 5 nats to its loss; `speed` is tokens/s by run id.
    """
    store = RunStore(root / "runs" / "tiny")
    store.create()
    store.freeze_study("", {})
    for run_id, end in ends.items():
        parts = RUN.match(run_id)
        assert parts, run_id
        share = {"75": 0.75, "50": 0.5}.get(run_id.rpartition("-t")[2], 1.0)
        tokens = int(BUDGET * share)
        phase: Phase = parts["phase"]  # type: ignore[assignment]
        trial = int(parts["trial"]) if parts["trial"] else None
        run = Run(run_id=run_id, phase=phase, trial=trial, seed=int(parts["seed"] or 0), tokens=tokens, hparams=GPT3)
        header = RunHeader(
            run=run,
            study="tiny",
            wandb_id=run_id,
            derived=derived(GPT3),
            num_params=1,
            started="2026-11-23T12:00:00+00:00",
        )
        writer = store.begin(header)
        loss = end if isinstance(end, float) else None
        tok_per_sec = (speed or {}).get(run_id, 1000.0)
        if loss is not None:
            for step in range(1, tokens // BATCH + 1):
                writer.append(_record(step, 5 + (loss - 5) * step * BATCH / tokens, quarter=tokens // BATCH // 4))
        if end is not None:
            outcome = end if isinstance(end, Outcome) else Outcome.COMPLETE
            writer.finish(
                RunResult(
                    outcome=outcome,
                    steps=tokens // BATCH,
                    tokens=tokens,
                    val_loss=loss,
                    best_val_loss=loss,
                    train_loss=loss,
                    tok_per_sec=tok_per_sec,
                    train_seconds=tokens / tok_per_sec,
                    clipped_share=0.0,
                )
            )
        writer.close()
    return load("tiny", runs=root / "runs")


def _record(step: int, loss: float, *, quarter: int) -> StepRecord:
    evaluated = step % quarter == 0
    return StepRecord(
        step=step,
        tokens=step * BATCH,
        loss=loss,
        grad_norm=1.0,
        clipped=False,
        lr=6e-4,
        update_to_weight=1e-3,
        batch_tokens=BATCH,
        micro_batch=16,
        accumulation=1,
        step_seconds=0.25,
        tok_per_sec=1000.0,
        val_loss=loss if evaluated else None,
        eval_index=step // quarter if evaluated else None,
        eval_seconds=0.1 if evaluated else None,
    )
