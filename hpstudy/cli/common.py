"""Where the commands print."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console

FILE_WIDTH = 110  # of a table that goes to a file or a pipe


def out() -> Console:
    """stdout: results."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False, markup=False)


def err() -> Console:
    """stderr: progress and notices. Outside a terminal, lines are neither cut nor wrapped."""
    stream = Lasting(sys.stderr)
    return Console(file=stream, soft_wrap=not stream.isatty(), highlight=False, markup=False)  # type: ignore[arg-type]


class Lasting:
    """A stream whose failed writes are dropped, so that no study ends because its terminal or its log is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with suppress(OSError, ValueError):  # the terminal is gone, the disk full, the stream closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(line: str) -> None:
    """One line on stderr."""
    err().print(line, markup=False)


def print_json(value: Any) -> None:
    """One JSON document in one line on stdout."""
    print(json.dumps(value, allow_nan=False))
