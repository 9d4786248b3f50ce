"""The driver's end of a worker: another process that trains as ordered and streams records back.

Orders and reports travel over one pipe. A worker exits by itself when the driver is gone: the pipe then ends, and it
has another parent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from hpstudy.errors import MachineError, UserError
from hpstudy.files import cache_dir, own_file, writing
from hpstudy.hparams import HParams
from hpstudy.running.messages import Order, Ready, Refused, Report, Setup, Timed, TimeSteps

POLL_SECONDS = 0.2  # how often a waiting driver checks its stop request
GRACE_SECONDS = 1.0  # for a worker to end by itself
START_SECONDS = 600.0  # for a worker to be ready, before it counts as hung
PINNING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # would pin all workers to one core
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PACKAGE = Path(__file__).parents[1]
BOOTSTRAP = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("hpstudy", {str(PACKAGE / "__init__.py")!r})
sys.modules["hpstudy"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from hpstudy.running.worker_main import main
main()
"""
"""Runs the driver's own hpstudy, whatever the current folder and sys.path hold."""
LONGEST_GAP = 2 * POLL_SECONDS  # counted between two reads of the AwakeClock; the process was held for the rest


class Worker:
    """The driver's end of one worker process."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection, log: Path) -> None:
        self._process = process
        self.connection = connection
        self.log = log

    @classmethod
    def start(cls, setup: Setup, log: Path) -> Worker:
        """Starts a process that writes to `log`, and orders its setup."""
        with writing(log):
            stream = open(log, "ab", opener=own_file)  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs, stream:
            worker = cls(spawn(theirs, setup.spec.threads, stream), Connection(ours.detach()), log)
        worker.send(setup)
        return worker

    def send(self, order: Order) -> None:
        """Sends an order. A worker that has died is noticed by `receive`, not here."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(order)

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """The next report, or None if the worker has died. Calls `meanwhile` several times a second."""
        try:
            while not self.connection.poll(POLL_SECONDS):
                meanwhile()
            report: Report = self.connection.recv()
        except (EOFError, OSError):
            return None
        return report

    def wait_until_ready(self, meanwhile: Callable[[], None] = lambda: None) -> Ready:
        """Waits until the trainer is built, at most START_SECONDS. Raises UserError or MachineError if it fails."""
        clock = AwakeClock()

        def poll() -> None:
            meanwhile()
            if clock.seconds() > START_SECONDS:
                self.kill()

        match self.receive(poll):
            case Ready() as ready:
                return ready
            case Refused() as refused:
                raise refusal(refused)
            case _:
                raise MachineError(f"the worker died before it was ready: {self.last_log_line()}; try `hpstudy doctor`")

    def time_steps(
        self,
        hparams: HParams,
        meanwhile: Callable[[], None] = lambda: None,
        *,
        steps: int = 6,
        evaluate: bool = False,
    ) -> Timed:
        """Times full-batch steps of an idle worker. Raises MachineError if the worker dies."""
        self.send(TimeSteps(hparams=hparams, steps=steps, evaluate=evaluate))
        report = self.receive(meanwhile)
        if not isinstance(report, Timed):  # most likely the kernel killed it, out of memory
            raise MachineError(
                f"the worker died in its timed steps: {self.last_log_line()}; lower micro_batch, or take a smaller "
                "model"
            )
        return report

    def last_log_line(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "its log is empty"

    def kill(self) -> None:
        """Ends the process at once; `receive` then returns None."""
        self._process.kill()

    def stop(self) -> int:
        """Ends the process, gently first, and returns its exit code."""
        stop_all([self])
        return self._process.wait()


def refusal(report: Refused) -> UserError | MachineError:
    """The error that says why a worker could not be built."""
    return UserError(report.problems) if report.by_user else MachineError("; ".join(report.problems))


def stop_all(workers: Sequence[Worker]) -> None:
    """Ends processes side by side, gently first, so that many hung ones take no longer than one."""
    for worker in workers:
        worker.connection.close()  # the worker then ends by itself, unless its step takes long
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker._process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker._process.wait()


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker process.

    Nothing is imported from the current folder, and no variable pins the workers to the same cores.
    """
    defaults = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache_dir() / "inductor"),  # torch's default is lost with /tmp
        "GLOO_SOCKET_IFNAME": LOOPBACK,  # the ranks of a training are on one machine
        "NCCL_SOCKET_IFNAME": LOOPBACK,
    }
    environment: Mapping[str, str] = (
        defaults
        | os.environ
        | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # makes cuBLAS deterministic
            "NCCL_NVLS_ENABLE": "0",  # it sums in another order from call to call
            "NCCL_ALGO": "Ring",
            "PYTHONSAFEPATH": "1",
            # an empty entry, as "$PYTHONPATH:more" leaves, would mean the current folder
            "PYTHONPATH": os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
        }
    )
    return {key: value for key, value in environment.items() if key not in PINNING}


def pinning_variables() -> list[str]:
    """The variables here that would pin every training to the same cores; workers do not get them."""
    return [key for key in PINNING if os.environ.get(key)]


def spawn(connection: socket.socket, threads: int, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Starts a fresh interpreter in its own session, so that a terminal's Ctrl-C reaches only the driver.

    It serves `connection`, and writes to `log` or where this process writes.
    """
    return subprocess.Popen(
        [sys.executable, "-c", BOOTSTRAP, str(connection.fileno())],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=worker_environment(threads),
        start_new_session=True,
    )


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
