"""A driver run in this process, and what is compared of two studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.records import Run, RunResult, StepRecord
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Options, StopRequest
from hpstudy.search import Search
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


class Watch:
    """A progress view that remembers, and may act on a step."""

    def __init__(self, on_step: Callable[[Run, StepRecord], None] = lambda *_: None) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.said: list[str] = []
        self._on_step = on_step

    def phase(self, name: str, num_runs: int, finished: Sequence[tuple[Run, RunResult]]) -> None:
        self.finished += [run.run_id for run, _ in finished]

    def start(self, run: Run) -> None:
        self.started.append(run.run_id)

    def step(self, run: Run, record: StepRecord) -> None:
        self._on_step(run, record)

    def finish(self, run: Run, result: RunResult) -> None:
        self.finished.append(run.run_id)

    def say(self, line: str) -> None:
        self.said.append(line)


def go(
    study: Study,
    runs: Path,
    *,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    wandb: Any = "disabled",
    device: str = "cpu",
    trials: int | None = None,
    workers: int = 1,
    checkpoint_seconds: float = 60.0,
) -> RunStore:
    options = Options(
        runs=runs, device=device, wandb=wandb, trials=trials, workers=workers, checkpoint_seconds=checkpoint_seconds
    )
    return run_study(study, options, watch or Watch(), stop or StopRequest())


def curves(store: RunStore) -> dict[str, list[StepRecord]]:
    return {view.run_id: [replace(r, **TIMES) for r in view.records()] for view in store.runs()}


def trials(study: Study, store: RunStore) -> list[Any]:
    return Search(study, store.root / "optuna.journal", read_only=True).trials()


def inherit(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs some code at the start of every Python that is started from here."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
