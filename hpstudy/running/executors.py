"""Where workers run: on this machine, or on the nodes of a cluster. The worker pool knows them by this interface only.

A worker is one process that trains, on whatever machine. It gets orders and gives reports (messages.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import HParams
from hpstudy.running.messages import Order, Ready, Refused, Report, Setup, Timed, TimeSteps

POLL_SECONDS = 0.2  # how often a waiting driver checks its stop request
START_SECONDS = 600.0  # for a worker that has a place to be ready, before it counts as hung
LONGEST_GAP = 2 * POLL_SECONDS  # counted between two reads of the AwakeClock; the process was held for the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a worker ended."""

    cause: str  # "the worker died (exit code -9; see runs/x/worker-0.log)"
    last_line: str  # of its log
    out_of_memory: bool = False  # the kernel killed it because memory ran out
    lost: bool = False  # with its machine, or because that cannot be reached: no fault of its run


class EngineLost(MachineError):
    """What runs the workers gives no answer. Those that train can still be reached for a while."""


class WorkerLost(MachineError):
    """A worker was lost with its machine, so that what it measured is not known."""

    def __init__(self, cause: str, worker: Worker) -> None:
        super().__init__(cause)
        self.worker = worker


class Worker(Protocol):
    """The driver's end of one worker."""

    @property
    def place(self) -> str:
        """The machine that it runs on, for people; empty for this one."""

    @property
    def waits(self) -> bool:
        """Whether it waits for a place to run, or there for its corpus, for as long as that takes."""

    def send(self, order: Order) -> None:
        """Sends an order. A worker that has ended is noticed by `receive`, not here."""

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """The next report, or None if the worker has ended. Calls `meanwhile` several times a second."""

    def kill(self) -> None:
        """Ends the process at once; `receive` then returns None."""

    def last_words(self) -> Ending:
        """Stops the worker, if it has not ended, and says how it ended."""


class Executor(Protocol):
    """Starts workers and listens to them."""

    grows: bool
    """Whether the number of places may change while a study runs."""

    def start(self, setup: Setup, number: int) -> Worker:
        """Starts worker `number` of a study, from 0."""

    def heard(self, seconds: float) -> Sequence[Worker]:
        """The workers that have a report or have ended. Waits so many seconds for the first."""

    def places(self, here: int) -> int:
        """Workers that can run at once. `here`: trainings that fit on the first worker's machine."""

    def avoid(self, worker: Worker) -> bool:
        """Starts no more workers on the machine of this one. False if it is unknown, or the only one there may be."""

    def room(self) -> str:
        """What a worker needs and what there is, for people; empty if no worker ever waits for a place."""

    def stop(self, workers: Sequence[Worker]) -> None:
        """Ends workers side by side, gently first, so that many hung ones take no longer than one."""

    def close(self) -> None:
        """Ends what listens to workers."""


def wait_until_ready(worker: Worker, meanwhile: Callable[[], None] = lambda: None) -> Ready:
    """Waits until the trainer is built, START_SECONDS at most once the worker has a place.

    Raises UserError or MachineError if it fails.
    """
    clock = AwakeClock()
    waited = 0.0

    def poll() -> None:
        nonlocal waited
        meanwhile()
        if worker.waits:
            waited = clock.seconds()
        if clock.seconds() - waited > START_SECONDS:
            worker.kill()

    match worker.receive(poll):
        case Ready() as ready:
            return ready
        case Refused() as refused:
            raise refusal(refused)
        case _:
            last = worker.last_words().last_line
            raise MachineError(f"the worker died before it was ready: {last}; try `hpstudy doctor`")


def refusal(report: Refused) -> UserError | MachineError:
    """The error that says why a worker could not be built."""
    return UserError(report.problems) if report.by_user else MachineError("; ".join(report.problems))


def time_steps(
    worker: Worker,
    hparams: HParams,
    meanwhile: Callable[[], None] = lambda: None,
    *,
    steps: int = 6,
    evaluate: bool = False,
) -> Timed:
    """Times full-batch steps of an idle worker. Raises MachineError if it dies, WorkerLost if its machine is lost."""
    worker.send(TimeSteps(hparams=hparams, steps=steps, evaluate=evaluate))
    report = worker.receive(meanwhile)
    if report is None and (ending := worker.last_words()).lost:
        raise WorkerLost(ending.cause, worker)
    if not isinstance(report, Timed):  # most likely the kernel killed it, out of memory
        raise MachineError(
            f"the worker died in its timed steps: {worker.last_words().last_line}; lower micro_batch, or take a "
            "smaller model"
        )
    return report


class AwakeClock:
    """Counts the seconds that this process was awake, if it is read at least every POLL_SECONDS.

    It stands still while a laptop sleeps or a signal holds the process: its workers are then silent too, and may wake
    later than it does.
    """

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def seconds(self) -> float:
        """The seconds so far."""
        now = time.monotonic()
        self._seconds += min(now - self._last, LONGEST_GAP)
        self._last = now
        return self._seconds
