"""What the driver and a worker send each other: plain picklable values.

The driver sends orders, the worker sends reports. Paths are those of the driver, whose files the worker shares.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpstudy.data.catalog import Source
from hpstudy.hparams import HParams
from hpstudy.records import BROKEN, BenchmarkFigures, Outcome, Run, StepRecord
from hpstudy.spec import TrainerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Order: build a trainer once and keep it warm."""

    spec: TrainerSpec
    device: str  # as given on the command line: auto, cpu, cuda, cuda:N
    base: Path  # where relative corpus paths start
    source: Source | None = None  # the corpus's files on the worker's machine; None: the worker finds them


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Order of rank 0 to another rank: build a trainer and train with the others."""

    setup: Setup  # on this rank's device
    rank: int
    port: int  # where the ranks find each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Order: train a run."""

    run: Run
    awaits_decision: bool  # after each evaluation but the last, wait for a StopDecision
    checkpoint: Path | None = None  # where the run resumes from
    recorded: int = 0  # its steps in the run store; a checkpoint ahead of them is not used


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """Order: stop or continue the run that awaits it."""

    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Order: write a checkpoint of the run in training after its next step, unless it has ended."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSteps:
    """Order: run full-batch steps, time them and measure their memory, and keep no result."""

    hparams: HParams
    steps: int
    evaluate: bool  # also time an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Order: time training steps and large matrix products in turns, and keep no result."""

    hparams: HParams
    rounds: int
    turn_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Report: the trainer is built."""

    environment: dict[str, Any]  # what the numbers depend on
    num_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Report: the trainer cannot be built."""

    problems: tuple[str, ...]
    by_user: bool  # whether the user's input is the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Report: the run resumes after `step`, or from its start if its checkpoint has a `problem`."""

    step: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Report: one step."""

    record: StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Report: the answer to Save. Every step before the checkpoint has been reported."""

    step: int
    seconds: float
    problem: str  # empty if the checkpoint was written


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Report: the run has ended."""

    outcome: Outcome
    message: str
    last: bool = False  # whether the worker ends with it, because no later order could be trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Report: the answer to TimeSteps."""

    step_seconds: tuple[float, ...]  # of each step, evaluation excluded; empty if a step failed
    eval_seconds: float | None
    peak_gib: float
    room_gib: float  # memory that the worker could use
    message: str = ""  # why a step failed
    last: bool = False  # as in Finished

    @property
    def median_step(self) -> float | None:
        """The median of the steps' seconds, or None if a step failed."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmarked:
    """Report: the answer to Benchmark."""

    figures: BenchmarkFigures | None  # None: it failed, and `message` says why
    message: str = ""


Order = Setup | Join | Train | StopDecision | Save | TimeSteps | Benchmark
Report = Ready | Refused | Resumed | Recorded | Saved | Finished | Timed | Benchmarked


def failed(report: Report) -> bool:
    """Whether a report says that an order could not be obeyed."""
    match report:
        case Finished(outcome=outcome):
            return outcome in BROKEN
        case Timed(message=message) | Benchmarked(message=message):
            return bool(message)
        case _:
            return isinstance(report, Refused)
