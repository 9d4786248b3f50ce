"""Rows of a trials table with made-up losses and speeds."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from hpstudy.analysis.frames import TRIALS_COLUMNS, StudyFrames
from hpstudy.hparams import GPT3, derived

LOSS, SPEED, BOTH = '"val/loss"', '"train/tok_per_sec"', '["val/loss", "train/tok_per_sec"]'


def trial(number: int, val_loss: float | None, tok_per_sec: float | None, **changes: Any) -> dict[str, Any]:
    """One row, of a complete trial unless changed."""
    hparams = replace(GPT3, batch_tokens=4096)
    row = {
        "run_id": f"search-{number:04d}",
        "phase": "search",
        "trial": number,
        "outcome": "complete",
        "val_loss": val_loss,
        "tok_per_sec": tok_per_sec,
        **asdict(hparams),
        **derived(hparams),
    }
    return row | changes


def frames(*rows: dict[str, Any]) -> StudyFrames:
    """The tables of a study with these trials and no steps."""
    trials = pd.DataFrame(list(rows), columns=list(TRIALS_COLUMNS)).astype(
        {"val_loss": "float64", "tok_per_sec": "float64"}
    )
    return StudyFrames(name="tiny", trials=trials, read_steps=pd.DataFrame)


FIVE = (  # complete; the others ended otherwise
    trial(0, 4.0, 1000.0),
    trial(1, 3.9, 500.0, lr=1e-3),
    trial(2, math.nan, 9000.0, outcome="diverged"),
    trial(3, 3.5, 8000.0, outcome="pruned"),
    trial(4, 3.95, 2000.0),
    trial(5, 4.5, 3000.0),
    trial(6, None, None, outcome=None),
    trial(7, 4.6, 2500.0),
    trial(8, 3.0, 9500.0, outcome="out_of_memory"),
)
