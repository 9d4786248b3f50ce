"""A study's run store with made-up losses: real files, read back by the real loader."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.analysis.frames import StudyFrames, load
from hpstudy.hparams import derived
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

STEPS = 20
Write = Callable[..., None]


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """Writes one run of `study` that ends at `loss`; a loss of NaN is a diverged run."""

    def write(study: Study, run_id: str, phase: Phase, loss: float, *, trial: int | None = None, seed: int = 0) -> None:
        store = RunStore(tmp_path / "runs" / study.name)
        store.create()
        store.freeze_study(study.path.read_text(), study.resolved())
        draw = np.random.default_rng([trial or 0, seed])
        hparams = study.baseline_hparams(study.spec.tokens)
        if trial:
            hparams = replace(hparams, lr=float(10 ** draw.uniform(-4, -1.6)), beta2=float(draw.uniform(0.9, 0.999)))
        run = Run(run_id=run_id, phase=phase, trial=trial, seed=seed, tokens=study.spec.tokens, hparams=hparams)
        header = RunHeader(
            run=run, study=study.name, wandb_id=f"w-{run_id}", derived=derived(hparams), num_params=1000,
            started="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        writer = store.begin(header)
        for step in range(1, STEPS + 1):
            now = loss + 2 * (1 - step / STEPS)
            evaluated = step % 5 == 0
            writer.append(
                StepRecord(
                    step=step, tokens=256 * step, loss=now, grad_norm=1 + float(draw.random()), clipped=step % 2 == 0,
                    lr=hparams.lr * (1 - step / STEPS), update_to_weight=1e-3, batch_tokens=256, micro_batch=16,
                    accumulation=1, step_seconds=0.01, tok_per_sec=25_600.0,
                    val_loss=now if evaluated else None, eval_index=step // 5 if evaluated else None,
                    eval_seconds=0.1 if evaluated else None,
                )
            )  # fmt: skip
        lost = math.isnan(loss)
        writer.finish(
            RunResult(
                outcome=Outcome.DIVERGED if lost else Outcome.COMPLETE, steps=STEPS, tokens=256 * STEPS,
                val_loss=None if lost else loss, best_val_loss=None if lost else loss, train_loss=loss,
                tok_per_sec=25_600.0, train_seconds=0.2, clipped_share=0.5,
            )
        )  # fmt: skip

    return write


@pytest.fixture
def searched(write_run: Write, tmp_path: Path) -> Callable[[Study], StudyFrames]:
    """A search of ten trials, of which one diverged."""

    def build(study: Study) -> StudyFrames:
        write_run(study, "search-0000", "search", 4.0, trial=0)
        for trial in range(1, 10):
            loss = math.nan if trial == 7 else 3.5 + trial / 10
            write_run(study, f"search-{trial:04d}", "search", loss, trial=trial)
        return load(study.name, tmp_path / "runs")

    return build


@pytest.fixture
def confirmed(searched: Callable[[Study], StudyFrames], write_run: Write, tmp_path: Path) -> Callable[..., StudyFrames]:
    """The search, then baseline and trial 1 on three fresh seeds: lower by 0.4 nats."""

    def build(study: Study) -> StudyFrames:
        searched(study)
        for number, seed in enumerate((101, 102, 103)):
            write_run(study, f"baseline-s{seed}", "baseline", 4.0 + number / 100, seed=seed)
            write_run(study, f"confirm-0001-s{seed}", "confirm", 3.6 + number / 90, trial=1, seed=seed)
        return load(study.name, tmp_path / "runs")

    return build
