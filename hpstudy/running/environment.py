"""What a study's numbers depend on besides its file. Frozen when the study starts."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpstudy.errors import UserError

FROZEN = ("device", "device_name", "precision", "threads", "torch", "corpus_digest")
HERE = Path(__file__).parent
PACKAGES = ("hpstudy", "optuna", "wandb", "tiktoken", "numpy", "pandas")


def describe(worker: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's environment, with package versions and the git commit of a checkout."""
    return {**worker, "packages": {name: version(name) for name in PACKAGES}, "git_commit": _git_commit()}


def differences(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What numbers depend on and has changed, each as "torch was 2.11, is 2.13"."""
    keys = [key for key in FROZEN if key in frozen]  # stores of other versions may know fewer
    return [f"{key} was {frozen[key]}, is {now[key]}" for key in keys if frozen[key] != now[key]]


def refuse_if_changed(frozen: Mapping[str, Any], now: Mapping[str, Any], study: str, folder: str) -> None:
    """Raises UserError for changes that would mix two kinds of numbers in one study."""
    if found := differences(frozen, now):
        raise UserError(
            f"{folder}: the study {study} began in another environment: {'; '.join(found)}. Its numbers would "
            "not be comparable; resume it where it began, or start again with another --runs folder"
        )


def _git_commit() -> str | None:
    """The commit of the checkout that hpstudy runs from, whatever the current folder is."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
