"""Where the commands print."""

from __future__ import annotations

import sys

from rich.console import Console

FILE_WIDTH = 110  # of a table that goes to a file or a pipe


def out() -> Console:
    """stdout: results."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False, markup=False)


def err() -> Console:
    """stderr: progress and notices. Outside a terminal, lines are neither cut nor wrapped."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, markup=False)


def say(line: str) -> None:
    """One line on stderr."""
    err().print(line, markup=False)
