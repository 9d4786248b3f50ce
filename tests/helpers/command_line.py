"""Calls the command line in this process, and programs in processes of their own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from rich.console import Console

from hpstudy.cli import main

REPOSITORY = Path(__file__).parents[2]
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "hpstudy")


class Result(NamedTuple):
    """The exit code of a command and what it printed."""

    code: int | str | None
    out: str
    err: str


def hpstudy(*args: object) -> Result:
    """Calls `hpstudy ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["hpstudy", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Result(ended.value.code, out.getvalue(), err.getvalue())


def at_eighty_columns(show: Callable[..., None], *arguments: Any) -> list[str]:
    """The lines that `show(console, *arguments)` prints on a terminal of 80 x 24. None is wider."""
    screen = io.StringIO()
    show(Console(file=screen, force_terminal=True, width=80, height=24, color_system=None, highlight=False), *arguments)
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    return lines


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, except the lock and the logs of workers."""
    ignored = {".lock", ".log"}
    files = (path for path in folder.rglob("*") if path.is_file() and not {path.suffix, path.name} & ignored)
    return {path: path.read_bytes() for path in files}


def run_python(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, which can import `tests`."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, **options)
