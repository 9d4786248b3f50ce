"""The W&B files of a study that ran offline hold the rows of its run store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hpstudy.hparams import derived
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.running import Watch, run_here
from tests.helpers.wandb_rows import end_session, history, inspected


class Offline(NamedTuple):
    """A finished study, and the records of each run's offline file, read by W&B's own reader."""

    store: RunStore
    files: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def once() -> list[Offline]:
    """Filled by the first test that asks for `offline`."""
    return []


@pytest.fixture
def offline(once: list[Offline], tiny: Callable[..., Study], tmp_path: Path) -> Offline:
    if not once:
        study = tiny(replace={"low = 1e-4": "low = 1e-3", "trials = 5": "trials = 2"})  # GPT-3's 6e-4 is outside
        watch = Watch()
        store = run_here(study, tmp_path / "runs", watch=watch, wandb="offline", workers=2)
        end_session()  # which completes the files
        assert [line for line in watch.lines if line.startswith("W&B:")] == []
        once.append(Offline(store, {view.run_id: inspected(store.root, view.header.wandb_id) for view in store.runs()}))
    return once[0]


def test_every_run_of_the_study_has_one_offline_file(offline: Offline) -> None:
    assert list(offline.files) == ["search-0000", "search-0001", "baseline-s0"]
    assert len(list((offline.store.root / "wandb").glob("*run-*"))) == 3


def test_a_file_has_the_stores_steps_with_equal_values_for_every_metric(offline: Offline) -> None:
    for view in offline.store.runs():
        lines, stored = offline.files[view.run_id], list(view.rows())
        items = [line["history"]["item"] for line in lines if line["type"] == "history"]
        assert len(stored) == 20
        assert history(lines) == stored
        assert [row["_step"] for row in items] == [row["step"] for row in stored]


def test_a_config_holds_hyperparameters_and_the_runs_identity(offline: Offline) -> None:
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
            "of": run.of,
            "candidate": "baseline" if run.phase == "baseline" else view.run_id,
            "fraction": run.fraction,
            "question": "Does the smallest study there is run?",
            "corpus": "asv",
            "context": 16,
        }
        assert {key: config[key] for key in expected} == expected


def test_runs_are_named_grouped_typed_and_tagged(offline: Offline) -> None:
    tags = {
        "search-0000": ["search", "complete"],
        "search-0001": ["search", "complete"],
        "baseline-s0": ["baseline", "complete"],
    }
    for view in offline.store.runs():
        run = [line["run"] for line in offline.files[view.run_id] if line["type"] == "run"][-1]
        found = {key: run[key] for key in ("run_group", "job_type", "display_name", "run_id", "project")}
        assert found == {
            "run_group": "tiny",
            "job_type": view.header.run.phase,
            "display_name": f"tiny/{view.run_id}",
            "run_id": view.header.wandb_id,
            "project": "hpstudy",
        }
        assert run["tags"] == tags[view.run_id]
        assert run["notes"] == "Does the smallest study there is run?"


def test_rows_that_are_written_after_the_training_have_the_time_of_the_training(offline: Offline) -> None:
    for view in offline.store.runs():
        items = [line["history"]["item"] for line in offline.files[view.run_id] if line["type"] == "history"]
        began = datetime.fromisoformat(view.header.started).timestamp()
        took = [record.step_seconds + (record.eval_seconds or 0) for record in view.records()]
        expected = [began + sum(took[: step + 1]) for step in range(len(took))]
        assert [item["_timestamp"] for item in items] == pytest.approx(expected, abs=1e-3)


def test_a_config_holds_what_the_runs_trained_on(offline: Offline) -> None:
    environment = offline.store.read_json("environment.json")
    for lines in offline.files.values():
        config = config_of(lines)
        found = {key: config.get(key) for key in ("precision", "device", "device_name", "commit")}
        assert found == {
            "precision": environment["precision"],
            "device": "cpu",
            "device_name": environment["device_name"],
            "commit": environment["git_commit"],
        }
        assert found["precision"] != "auto"


def config_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line["run"]["config"]["update"] for line in lines if line["type"] == "run")
