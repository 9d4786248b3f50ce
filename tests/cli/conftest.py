"""The tiny study after a run, and copies of it to change."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.command_line import PROGRAM, Result


class Finished(NamedTuple):
    """The tiny study after `hpstudy run --wandb offline`, for tests that only read it."""

    path: Path
    runs: Path
    result: Result


@pytest.fixture(scope="session")
def finished_once() -> list[Finished]:
    """Filled by the first test that asks for `finished`."""
    return []


@pytest.fixture
def finished(
    finished_once: list[Finished], tiny_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    if not finished_once:
        folder = tmp_path_factory.mktemp("finished")
        path, runs = Path(shutil.copy(tiny_file(), folder)), folder / "runs"
        command = [PROGRAM, "run", str(path), "--runs", str(runs), "--wandb", "offline"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        finished_once.append(Finished(path, runs, Result(done.returncode, done.stdout, done.stderr)))
    return finished_once[0]


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished study's runs folder that a test may change."""
    return Path(shutil.copytree(finished.runs, tmp_path / "copied"))
