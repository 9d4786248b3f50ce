"""What the driver and its caller exchange: options in, progress out, and a request to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpstudy.errors import HpstudyError
from hpstudy.records import Phase, Run, RunResult, StepRecord
from hpstudy.search import Forecast
from hpstudy.tracking.wandb_settings import ModeFlag


class Progress(Protocol):
    """Shows a human how far the study is. It never changes what is done."""

    def earlier(self, finished: Sequence[Run]) -> None:
        """Earlier sessions finished these runs, of any phase."""

    def phase(
        self, name: Phase, num_runs: int, finished: Sequence[tuple[Run, RunResult]], most: int | None = None
    ) -> None:
        """A phase of `num_runs` runs begins, which may grow to `most`; earlier sessions finished some of them."""

    def grow(self, num_runs: int, most: int) -> None:
        """A look at the results left the phase with so many runs, which may grow to `most`."""

    def start(self, run: Run, tokens: int = 0) -> None:
        """A run begins, or resumes after `tokens` that are recorded; their steps are shown again."""

    def step(self, run: Run, record: StepRecord) -> None:
        """A step was recorded."""

    def forecast(self, run: Run, forecast: Forecast) -> None:
        """The pruner has a new forecast of the run's final loss."""

    def finish(self, run: Run, result: RunResult) -> None:
        """A run has a result."""

    def say(self, line: str) -> None:
        """Shows one line to the user."""


class StopRequest:
    """Set by a signal handler. The driver stops when it next checks it."""

    def __init__(self) -> None:
        self.requested = False


class Interrupted(HpstudyError):
    """The user stopped the study. Everything recorded is on disk."""

    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where and how a study runs. `trials` may extend the search, and `device` may decide the precision."""

    runs: Path
    device: str
    wandb: ModeFlag
    cluster: str | None = None  # the address of a Ray cluster, or "auto"; None: this machine
    workers: int | None = None  # None: as many as trainings fit at once
    trials: int | None = None
    accept_environment: bool = False  # resume although what the numbers depend on has changed
    checkpoint_seconds: float = 60.0  # between two checkpoints of a run; 0: as often as possible
