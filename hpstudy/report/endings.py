"""How runs that are not complete ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from hpstudy.analysis.results import StudyResults
from hpstudy.records import BROKEN, Outcome

MOST_CHARACTERS = 120  # of a failure's message


def not_complete(results: StudyResults) -> pd.DataFrame:
    """The search's trials that ended without a comparable result: pruned, diverged, failed, out of memory."""
    trials, complete = results.trials, results.ranked()["run_id"]
    ended = (trials["phase"] == "search") & trials["outcome"].notna()
    return trials[ended & ~trials["run_id"].isin(complete)]


def ending(row: Mapping[Any, Any]) -> str:
    """`pruned at step 40`, `diverged at step 7`, `failed at step 0: no space left`, from a row of `trials`."""
    outcome = row["outcome"]
    if pd.isna(outcome):
        return "unfinished"
    if outcome == Outcome.COMPLETE:
        return "complete"
    at = "" if pd.isna(row["steps"]) else f" at step {row['steps']:,}"
    lines = row["message"].strip().splitlines() if outcome in BROKEN and isinstance(row["message"], str) else []
    why = f": {lines[-1][:MOST_CHARACTERS]}" if lines else ""
    return f"{str(outcome).replace('_', ' ')}{at}{why}"
