"""A study that ran offline left W&B files that hold what its run store holds, row for row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hpstudy.hparams import derived
from hpstudy.records import Run, RunResult, StepRecord
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Options, StopRequest
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore, RunView, restored


class Silent:
    """A progress view that only keeps what should be read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str, num_runs: int, finished: Sequence[tuple[Run, RunResult]]) -> None: ...

    def start(self, run: Run) -> None: ...

    def step(self, run: Run, record: StepRecord) -> None: ...

    def finish(self, run: Run, result: RunResult) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


class Offline(NamedTuple):
    """A finished study, and each run's offline file as W&B's own reader tells it."""

    store: RunStore
    files: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def once() -> list[Offline]:
    """Filled by the first test that asks for `offline`."""
    return []


@pytest.fixture
def offline(once: list[Offline], tiny: Callable[..., Study], tmp_path: Path) -> Offline:
    if not once:
        import wandb

        study = tiny(replace={"low = 1e-4": "low = 1e-3", "trials = 5": "trials = 2"})  # GPT-3's 6e-4 lies outside
        progress = Silent()
        options = Options(runs=tmp_path / "runs", device="cpu", wandb="offline")
        store = run_study(study, options, progress, StopRequest())
        wandb.teardown()  # a file is whole once the session has ended
        assert [line for line in progress.said if line.startswith("W&B:")] == []
        once.append(Offline(store, {view.run_id: inspected(store, view) for view in store.runs()}))
    return once[0]


def inspected(store: RunStore, view: RunView) -> list[dict[str, Any]]:
    (path,) = (store.root / "wandb").glob(f"offline-run-*-{view.header.wandb_id}/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_every_run_of_the_study_has_one_offline_file(offline: Offline) -> None:
    assert list(offline.files) == ["search-0000", "search-0001", "baseline-s0"]
    assert len(list((offline.store.root / "wandb").glob("*run-*"))) == 3


def test_a_file_has_the_stores_steps_with_equal_values_for_every_metric(offline: Offline) -> None:
    for view in offline.store.runs():
        items = [line["history"]["item"] for line in offline.files[view.run_id] if line["type"] == "history"]
        rows = [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]
        stored = list(view.rows())
        assert len(stored) == 20
        assert restored(rows) == stored
        assert [row["_step"] for row in items] == [row["step"] for row in stored]


def test_a_config_holds_hyperparameters_and_what_the_run_is(offline: Offline) -> None:
    for view in offline.store.runs():
        config = config_of(offline.files[view.run_id])
        run = view.header.run
        expected = {
            **asdict(run.hparams),
            **derived(run.hparams),
            "study": "tiny",
            "run_id": view.run_id,
            "trial": run.trial,
            "seed": run.seed,
            "phase": run.phase,
            "corpus": "asv",
            "context": 16,
        }
        assert {key: config[key] for key in expected} == expected


def test_runs_are_grouped_by_study_and_typed_by_phase(offline: Offline) -> None:
    for view in offline.store.runs():
        (run,) = (line["run"] for line in offline.files[view.run_id] if line["type"] == "run")
        where = {key: run[key] for key in ("run_group", "job_type", "display_name", "run_id", "project")}
        assert where == {
            "run_group": "tiny",
            "job_type": view.header.run.phase,
            "display_name": view.run_id,
            "run_id": view.header.wandb_id,
            "project": "hpstudy",
        }


def config_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    (run,) = (line["run"] for line in lines if line["type"] == "run")
    return run["config"]["update"]
