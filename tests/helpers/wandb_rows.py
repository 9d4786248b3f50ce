"""A W&B sink, the rows that W&B has of a run, and the end of wandb's session."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpstudy.files import unspelled
from hpstudy.records import StepRecord, as_row
from hpstudy.tracking.wandb_settings import Mode
from hpstudy.tracking.wandb_sink import WandbSink
from tests.helpers.samples import record

KEY = "0" * 40
STEPS = [record(step, evaluated=step == 10) for step in range(1, 21)]


def end_session() -> None:
    """Ends wandb's session: it reads its settings once a session, and completes its files at the end."""
    import wandb

    wandb.teardown()


def new_sink(
    folder: Path, mode: Mode, messages: list[str], patience: float = 10.0, rules: dict[str, str] | None = None
) -> WandbSink:
    """A sink that adds what it says to `messages`."""
    return WandbSink(
        mode=mode,
        project="p",
        entity=None,
        directory=folder,
        extra={"corpus": "asv"},
        say=messages.append,
        patience=patience,
        rules=rules or {},
    )


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits at most some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def inspected(folder: Path, wandb_id: str) -> list[dict[str, Any]]:
    """The records of a run's one offline file, read by W&B's own reader. Call it after the session has ended."""
    (path,) = (folder / "wandb").glob(f"offline-run-*-{wandb_id}/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def own_keys(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without the keys that wandb adds."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def history(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the records of an offline file."""
    return unspelled(own_keys([line["history"]["item"] for line in records if line["type"] == "history"]))


def offline_rows(folder: Path, wandb_id: str) -> list[dict[str, Any]]:
    """The rows in a run's one offline file."""
    end_session()
    return history(inspected(folder, wandb_id))


def same(rows: Sequence[dict[str, Any]], steps: Sequence[StepRecord]) -> bool:
    """Whether rows equal steps, in any order of keys. Floats are compared by repr, because NaN differs from itself."""

    def comparable(row: dict[str, Any]) -> list[tuple[str, str]]:
        return sorted((key, repr(float(value))) for key, value in row.items())

    return [comparable(row) for row in rows] == [comparable(as_row(step)) for step in steps]
