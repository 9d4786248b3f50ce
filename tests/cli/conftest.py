"""Runs the command line: in this process, or as a program where the process is the point."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hpstudy.cli import main
from tests.report.conftest import confirmed, searched, write_run  # noqa: F401  fixtures of studies without training

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "hpstudy")


class Told(NamedTuple):
    """What a command left behind."""

    code: int | str | None
    out: str
    err: str


@pytest.fixture
def hpstudy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Calls `hpstudy ARGS` in this process."""

    def call(*args: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["hpstudy", *map(str, args)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return Told(ended.value.code, out.getvalue(), err.getvalue())

    return call


class Finished(NamedTuple):
    """The tiny study after `hpstudy run --wandb offline`, for tests that only read it."""

    path: Path
    runs: Path
    told: Told


@pytest.fixture(scope="session")
def finished_once() -> list[Finished]:
    """Filled by the first test that asks for `finished`."""
    return []


@pytest.fixture
def finished(
    finished_once: list[Finished], tiny_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    if not finished_once:
        path, runs = tiny_file(), tmp_path_factory.mktemp("finished") / "runs"
        command = [PROGRAM, "run", str(path), "--runs", str(runs), "--wandb", "offline"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        finished_once.append(Finished(path, runs, Told(done.returncode, done.stdout, done.stderr)))
    return finished_once[0]


@pytest.fixture
def program() -> str:
    """The installed program, for tests in which the process is the point."""
    return PROGRAM
