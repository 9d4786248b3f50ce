"""Whether a run is still what was trained.

The result.json of a finished run holds the hashes of its three files, and of its table if it has one. An unfinished run
with a checkpoint has the hash of the steps up to it, because those are not trained again when the run resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hpstudy.files import from_json, json_object, read_json, to_json, write_atomic
from hpstudy.records import Outcome, RunResult

HEADER, STEPS, RESULT = "header.json", "steps.jsonl", "result.json"
TABLE = "steps.parquet"  # the steps of a long run once more, for fast reading
SEAL = "sha256"  # the key of result.json that holds {file: hash}
MARK = "recorded.json"  # the size and the hash of the steps that a checkpoint stands for


def sealed(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of result.json: the result, and the hashes of it and of the other files of the run."""
    table = folder / TABLE
    return {**result, SEAL: _hashes(result, folder) | ({TABLE: _sha256(table)} if table.exists() else {})}


def sealed_table(folder: Path) -> tuple[bytes, str] | None:
    """(the content of a finished run's table, the hash of the lines that it must be of).

    None without a table, or if it is not what it was when the run ended.
    """
    try:
        noted = json_object(from_json((folder / RESULT).read_bytes()))[SEAL]
        content, of_table, of_lines = (folder / TABLE).read_bytes(), noted[TABLE], noted[STEPS]
    except (ValueError, TypeError, KeyError, OSError):
        return None
    return (content, of_lines) if hashlib.sha256(content).hexdigest() == of_table else None


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


def mark(folder: Path, size: int, steps_sha256: str) -> None:
    """Notes the first `size` bytes of a run's steps, which its next checkpoint stands for."""
    write_atomic(folder / MARK, to_json({"bytes": size, SEAL: steps_sha256, HEADER: _sha256(folder / HEADER)}))


def marked_damage(folder: Path, steps: bytes) -> tuple[str | None, int]:
    """(what was changed in the header, or in the steps that the checkpoint stands for; their size in bytes).

    None and 0 without a mark. Steps that are gone are trained again, and compared with those that are left.
    """
    noted = read_json(folder / MARK, json_object) or {}
    size = noted.get("bytes")
    return (_changed_since(noted, size, folder, steps), size) if isinstance(size, int) else (None, 0)


def _changed_since(noted: Mapping[str, Any], size: int, folder: Path, steps: bytes) -> str | None:
    if noted.get(HEADER, (found := _sha256(folder / HEADER))) != found:
        return f"{HEADER} or {MARK} changed after the run began"
    if size <= len(steps) and hashlib.sha256(steps[:size]).hexdigest() != noted.get(SEAL):
        return f"{STEPS} or {MARK} changed after its steps were trained"
    return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
