"""Checkpoints: all that the next step of a run depends on, in one file."""

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
    """A model and its optimizer after `step` steps. Data and schedule follow from the step, so neither is stored."""

    step: int
    weights: Tensor  # the flat buffer, fp32
    optimizer: dict[str, Any]  # AdamW.state_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file holds."""

    fingerprint: str  # of what was trained, and where
    bad_steps: int  # of the divergence watch
    state: TrainingState


# keys of the spec at the values of versions that did not have them
NEWER = (("val", None), ("confirm_val", False), ("deterministic", True), ("gpus", 1), ("processes", 1))


def fingerprint(spec: TrainerSpec, run: Run, environment: Mapping[str, Any]) -> str:
    """Equal only for the same run of the same spec on the same kind of machine."""
    trained = {key: value for key, value in asdict(run).items() if key not in ("of", "fraction")}  # newer than files
    fixed = {key: value for key, value in asdict(spec).items() if (key, value) not in NEWER}
    machine = {key: environment[key] for key in MACHINE}
    return hashlib.sha256(json.dumps([fixed, trained, machine], sort_keys=True, default=repr).encode()).hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file durably, but not atomically: write to another name and rename.

    Raises OSError or RuntimeError if it cannot be written.
    """
    state = {key: getattr(checkpoint.state, key) for key in ("step", "weights", "optimizer")}
    path.unlink(missing_ok=True)
    with path.open("xb") as file:  # never through a link
        torch.save({"fingerprint": checkpoint.fingerprint, "bad_steps": checkpoint.bad_steps, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Reads a file that `save_checkpoint` wrote. Nothing in the file is executed.

    Raises ValueError if it is damaged or of another run or machine, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums but does not check them
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        found = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**{**found, "state": TrainingState(**found["state"])})
    except OSError:
        raise
    except Exception as error:  # zipfile, torch and pickle each raise their own
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if checkpoint.fingerprint != fingerprint:
        raise ValueError(f"{path}: belongs to another run, or to another machine")
    return checkpoint
