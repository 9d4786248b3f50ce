"""A training in the middle of a run: all that its next step depends on, in one file."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpstudy.records import Run
from hpstudy.spec import TrainerSpec

MACHINE = ("device", "precision", "threads", "torch", "corpus_digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """A model and its optimizer after `step` steps. Data and schedule are functions of the step, so neither is kept."""

    step: int
    weights: Tensor  # the flat buffer, fp32
    optimizer: dict[str, Any]  # AdamW's state_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file holds."""

    fingerprint: str  # of what was trained, and where; another run's checkpoint is refused
    bad_steps: int  # of the divergence watch
    state: TrainingState


def fingerprint(spec: TrainerSpec, run: Run, environment: Mapping[str, Any]) -> str:
    """The same for two trainings exactly if they give the same numbers."""
    told = [asdict(spec), asdict(run), {key: environment[key] for key in MACHINE}]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode()).hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file and makes it durable; whoever reads `path` meanwhile may find a part of it.

    Raises OSError or RuntimeError when it cannot be written.
    """
    state = {key: getattr(checkpoint.state, key) for key in ("step", "weights", "optimizer")}
    with path.open("wb") as file:
        torch.save({"fingerprint": checkpoint.fingerprint, "bad_steps": checkpoint.bad_steps, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Reads a file that `save_checkpoint` wrote; nothing in it is ever executed.

    Raises ValueError when it is damaged or belongs to another run, OSError when it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not look at them
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not have its checksum")
        found = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**{**found, "state": TrainingState(**found["state"])})
    except OSError:
        raise
    except Exception as error:  # of zipfile, torch and pickle, each by its own name
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if checkpoint.fingerprint != fingerprint:
        raise ValueError(f"{path}: belongs to another run, or to another machine")
    return checkpoint
