"""The driver's end of a worker: another process that trains what it is told and streams records back.

Orders and reports are plain picklable values over one duplex pipe, so that something other than a local process can
stand behind the same boundary. A worker exits by itself when its driver is gone: the pipe then ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Run, Speed, StepRecord
from hpstudy.spec import TrainerSpec
from hpstudy.training.shards import cache_dir

LOOK_SECONDS = 0.2  # how often a waiting driver looks at its stop request
GRACE_SECONDS = 1.0  # for a worker to end by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker builds once and keeps warm."""

    spec: TrainerSpec
    device: str  # as given on the command line: auto, cpu, cuda, cuda:N
    base: Path  # relative corpus paths start here


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Order: train a run, or several of equal shape as one model; those that end together have one Finished.

    With `judged`, the worker waits for the driver's word after every evaluation but the last of each run.
    """

    runs: tuple[Run, ...]
    judged: bool
    packed: bool = False  # as in a pack, even a single one, whose last bits are others alone
    checkpoint: Path | None = None  # of a single run: where to go on from
    recorded: int = 0  # its steps in the run store, which a checkpoint may not be ahead of


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Order: the word after an evaluation of a judged run."""

    run_id: str
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Order: write a checkpoint of the single run that is being trained, after its next step, if it has not ended."""

    run_id: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Order: time a few steps, keep nothing."""

    hparams: HParams
    pack: int = 1  # runs trained as one


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSteps:
    """Order: run a few whole steps and tell how long one takes and what memory they need, keep nothing."""

    hparams: HParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Report: built and waiting; `environment` is what the numbers depend on."""

    environment: dict[str, Any]
    num_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Report: the worker cannot be built from what the user gave."""

    problems: tuple[str, ...]
    by_user: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Report: a run goes on after `step`, or from its beginning where its checkpoint has a problem."""

    run_id: str
    step: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Report: the answer to Save; every step before it has been reported. `problem` is empty when all went well."""

    run_id: str
    seconds: float
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Report: one step."""

    run_id: str
    record: StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Report: runs have ended, all of them in one way."""

    run_ids: tuple[str, ...]
    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Report: the answer to Measure; `speed` is None when it failed, and the message says why."""

    speed: Speed | None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Report: the answer to TimeSteps; `step_seconds` is None when they failed, and the message says why."""

    step_seconds: float | None  # the shortest: other processes only lengthen a step
    peak_gib: float  # of memory
    room_gib: float  # what the worker could have
    message: str = ""


Order = Setup | Train | Word | Save | Measure | TimeSteps
Report = Ready | Refused | Resumed | Recorded | Saved | Finished | Measured | Timed


class Worker:
    """The driver's end of one worker process."""

    def __init__(self, setup: Setup, log: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as stream:
            self._process = _spawn(theirs, stream, setup.spec.threads)
        self.connection = Connection(ours.detach())
        self.log = log
        self.send(setup)

    def send(self, order: Order) -> None:
        """Sends an order; a worker that has died is noticed by `receive`, not here."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(order)

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """The next report, or None when the worker has died; calls `meanwhile` several times a second."""
        try:
            while not self.connection.poll(LOOK_SECONDS):
                meanwhile()
            report: Report = self.connection.recv()
        except (EOFError, OSError):
            return None
        return report

    def last_words(self) -> str:
        """The last line of the log, which goes when a study that never began is taken away."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it left no word"

    def kill(self) -> None:
        """Ends the process at once, if it lives; `receive` then returns None."""
        self._process.kill()

    def stop(self) -> int:
        """Ends the process, gently first; returns its exit code."""
        stop_all([self])
        return self._process.wait()


def stop_all(workers: Sequence[Worker]) -> None:
    """Ends processes side by side, gently first, so that many hung ones take no longer than one."""
    for worker in workers:
        worker.connection.close()  # it ends by itself then, unless its step takes long
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker._process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C leaves none of them either
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker._process.wait()


def _spawn(connection: socket.socket, log: IO[bytes], threads: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a session of its own, so that a terminal's Ctrl-C reaches the driver only."""
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(cache_dir() / "inductor")}  # torch's default is emptied with /tmp
    environment: Mapping[str, str] = (
        compiled
        | os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS needs to be deterministic
        }
    )
    return subprocess.Popen(
        [sys.executable, "-m", "hpstudy.running.worker_main", str(connection.fileno())],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )
