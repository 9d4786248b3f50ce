"""Loads the studies that a command names, with a warning for each part that is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hpstudy.analysis.results import StudyResults, load
from hpstudy.cli.common import say
from hpstudy.errors import HpstudyError


def loaded(name: str, runs: Path) -> StudyResults:
    """The results of a study, after a warning for each run that is left out of them. Raises as `load` does."""
    results = load(name, runs)
    warn(*results.frames.problems)
    return results


def warn(*problems: str) -> None:
    """One line on stderr for each problem."""
    for problem in problems:
        say(f"warning: {problem}")


def readable(names: Sequence[str], runs: Path) -> Iterator[StudyResults]:
    """The results of the studies that can be read, with a warning for each other one."""
    for name in names:
        try:
            yield loaded(name, runs)
        except HpstudyError as error:
            warn(f"{name}: {error}")
