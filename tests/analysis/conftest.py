"""A study that confirms on fresh seeds, and a store with runs that ended in every way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.analysis.frames import StudyFrames, load
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Phase, Run, RunHeader, RunResult, StepRecord
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.stores import SEEDS, begun, header_of, keep_run


@pytest.fixture
def study(tiny: Callable[..., Study]) -> Callable[..., Study]:
    """Loads the smallest study with three candidates and these fresh seeds, margin and design."""

    def make(seeds: Sequence[int] = SEEDS, margin: float = 0.01, design: str = "paired") -> Study:
        return tiny(more=f'\n[confirm]\nseeds = {list(seeds)}\ntop = 3\nmargin = {margin}\ndesign = "{design}"\n')

    return make


@pytest.fixture
def race(tiny: Callable[..., Study]) -> Callable[..., Study]:
    """Loads the smallest study with three candidates that are judged after 3 seeds, then after 5."""

    def make(looks: Sequence[int] = (3, 5), seeds: Sequence[int] = SEEDS, margin: float | None = None) -> Study:
        stated = "" if margin is None else f"margin = {margin}\n"
        confirm = f"\n[confirm]\nlooks = {list(looks)}\nseeds = {list(seeds)}\ntop = 3\n{stated}"
        return tiny(more=confirm, replace={"format = 1": "format = 2"})

    return make


def header(run_id: str, *, phase: Phase = "search", trial: int | None = None, **hparams: Any) -> RunHeader:
    run = Run(run_id=run_id, phase=phase, trial=trial, seed=0, tokens=40_960, hparams=replace(GPT3, **hparams))
    return header_of(run, study="small")


def steps(count: int, *, last_loss: float | None = None) -> list[StepRecord]:
    """Floats that are hard to keep exactly, an evaluation every fifth step, and the given last loss."""
    records = [
        StepRecord(
            step=k,
            tokens=4096 * k,
            loss=10.8 / k,
            grad_norm=1 / 3 * k,
            clipped=k % 2 == 1,
            lr=6e-4 * 0.1**k,
            update_to_weight=5e-324 if k == 1 else 1e-3 / k,
            batch_tokens=4096,
            micro_batch=16,
            accumulation=2,
            step_seconds=0.1 + k / 7,
            tok_per_sec=2**53 - 1.0,
            val_loss=4 + 1 / k if k % 5 == 0 else None,
            eval_index=k // 5 if k % 5 == 0 else None,
            eval_seconds=0.3 if k % 5 == 0 else None,
        )
        for k in range(1, count + 1)
    ]
    return records if last_loss is None else [*records[:-1], replace(records[-1], loss=last_loss)]


def result(outcome: Outcome, records: list[StepRecord], **figures: Any) -> RunResult:
    last = records[-1]
    made: dict[str, Any] = {
        "val_loss": 4.1,
        "best_val_loss": 4.05,
        "train_loss": last.loss,
        "tok_per_sec": 1e5,
        "train_seconds": 3.5,
        "clipped_share": 0.5,
    }
    return RunResult(outcome=outcome, steps=last.step, tokens=last.tokens, **(made | figures))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A finished run, a diverged one, a failed one without steps, an unfinished one and a baseline."""
    store = begun(tmp_path, name="small")
    keep_run(store, header("search-0000", trial=0), steps(10), result(Outcome.COMPLETE, steps(10)))
    bad = steps(7, last_loss=math.nan)
    bad = [*bad[:-1], replace(bad[-1], grad_norm=math.inf)]
    diverged = header("search-0001", trial=1, lr=0.1, weight_decay=0.0)
    keep_run(store, diverged, bad, result(Outcome.DIVERGED, bad, val_loss=None, best_val_loss=math.inf))
    nothing = RunResult(
        outcome=Outcome.FAILED,
        steps=0,
        tokens=0,
        val_loss=None,
        best_val_loss=None,
        train_loss=None,
        tok_per_sec=None,
        train_seconds=0.0,
        clipped_share=None,
    )
    keep_run(store, header("search-0002", trial=2, clip_mode="none"), [], nothing)
    keep_run(store, header("search-0003", trial=3), steps(4))
    keep_run(store, header("baseline-s0", phase="baseline"), steps(5), result(Outcome.COMPLETE, steps(5)))
    return store


@pytest.fixture
def frames(store: RunStore) -> StudyFrames:
    return load("small", runs=store.root.parent)
