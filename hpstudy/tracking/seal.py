"""Whether a finished run is still what was trained: result.json holds the hashes of the run's three files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hpstudy.files import from_json, json_object, to_json
from hpstudy.records import Outcome, RunResult

HEADER, STEPS, RESULT = "header.json", "steps.jsonl", "result.json"
SEAL = "sha256"  # the key of result.json that holds {file: hash}


def sealed(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of result.json: the result, and the hashes of it and of the other two files of the run."""
    return {**result, SEAL: _hashes(result, folder)}


def damage(folder: Path) -> str | None:
    """What was changed in a finished run after it ended, or None.

    A run of a version that kept no hashes is compared with its last step instead.
    """
    try:
        result = json_object(from_json((folder / RESULT).read_bytes()))
        noted = result.pop(SEAL, None)
        if noted is None:
            unknown = result.keys() - {field.name for field in fields(RunResult)}
            return f"{RESULT} changed after the run ended" if unknown else _last_step_differs(result, folder)
        changed = [name for name, found in _hashes(result, folder).items() if found != json_object(noted).get(name)]
    except (ValueError, TypeError, OSError) as error:
        return f"cannot be read ({error})"
    return f"{' and '.join(changed)} changed after the run ended" if changed else None


def _hashes(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    steps = folder / STEPS
    contents = {
        RESULT: to_json(result).encode(),
        HEADER: (folder / HEADER).read_bytes(),
        STEPS: steps.read_bytes() if steps.exists() else b"",
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _last_step_differs(result: Mapping[str, Any], folder: Path) -> str | None:
    path = folder / STEPS
    lines = path.read_bytes().splitlines() if path.exists() else []
    last = json_object(from_json(lines[-1])) if lines else {"step": 0, "tokens": 0, "train/loss": None}
    pairs = {"steps": "step", "tokens": "tokens", "train_loss": "train/loss"}
    if "val/loss" in last and result.get("outcome") != Outcome.DIVERGED:
        pairs["val_loss"] = "val/loss"
    wrong = [
        f"{key} is {result.get(key)} in {RESULT} and {last.get(metric)} in {STEPS}"
        for key, metric in pairs.items()
        if repr(result.get(key)) != repr(last.get(metric))  # repr: NaN equals NaN
    ]
    return "; ".join(wrong) or None
