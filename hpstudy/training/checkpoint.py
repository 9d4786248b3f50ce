"""A training in the middle of a run: all that its next step depends on, in one file."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state after `step` steps. Data and schedule are functions of the step, so neither is kept."""

    fingerprint: str  # of what was trained; another run's checkpoint is refused
    step: int
    weights: Tensor  # the flat buffer, fp32
    optimizer: dict[str, Any]  # AdamW's state_dict
    strikes: int  # of the divergence watch


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file and makes it durable; whoever reads `path` meanwhile may find a part of it.

    Raises OSError when it cannot be written.
    """
    state = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    with path.open("wb") as file:
        torch.save(state, file)
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
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:  # of zipfile, torch and pickle, each by its own name
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if checkpoint.fingerprint != fingerprint:
        raise ValueError(f"{path}: belongs to another run")
    return checkpoint
