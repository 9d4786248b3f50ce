"""What the driver and whoever calls it exchange: options in, progress out, and a request to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpstudy.errors import HpstudyError
from hpstudy.records import Phase, Run, RunResult, StepRecord
from hpstudy.tracking.wandb_sink import ModeFlag


class Progress(Protocol):
    """What shows a human how far the study is; it never changes what is done."""

    def phase(self, name: Phase, num_runs: int, finished: Sequence[tuple[Run, RunResult]]) -> None:
        """A phase begins: so many runs in all, and those that earlier sessions finished."""

    def start(self, run: Run) -> None:
        """A run begins."""

    def step(self, run: Run, record: StepRecord) -> None:
        """A step was recorded."""

    def finish(self, run: Run, result: RunResult) -> None:
        """A run has a result."""

    def say(self, line: str) -> None:
        """One line that the user should read."""


class StopRequest:
    """Set by a signal handler; the driver then stops at its next look."""

    def __init__(self) -> None:
        self.requested = False


class Interrupted(HpstudyError):
    """The user stopped the study; everything recorded is on disk."""

    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where and how a study runs; nothing here changes a result, save that `trials` may extend the search."""

    runs: Path
    device: str
    wandb: ModeFlag
    workers: int | None = None  # None: as many as this machine trains fastest with
    trials: int | None = None
    checkpoint_seconds: float = 60.0  # between the checkpoints of a run; 0: as often as it can
