"""Workers on this machine: other processes, each with a pipe for orders and reports.

A worker exits by itself when the driver is gone: the pipe then ends, and it has another parent.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from hpstudy import processes
from hpstudy.files import cache_dir, own_file, writing
from hpstudy.running.executors import POLL_SECONDS, Ending, Worker
from hpstudy.running.messages import Order, Report, Setup
from hpstudy.system import oom_kills

GRACE_SECONDS = 1.0  # for a worker to end by itself
PINNING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # would pin all workers to one core
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class LocalWorker:
    """The driver's end of one worker process."""

    place = ""
    waits = False

    def __init__(self, setup: Setup, log: Path, ran_out_of_memory: Callable[[], bool] = lambda: False) -> None:
        """Starts a process that writes to `log`, and orders its setup.

        `ran_out_of_memory`: whether the kernel has killed a process since it was last asked.
        """
        with writing(log):
            stream = open(log, "ab", opener=own_file)  # noqa: SIM115
        with stream:
            self._process, self.connection = spawn(setup.spec.threads, stream)
        self.log = log
        self._ran_out_of_memory = ran_out_of_memory
        self.send(setup)

    def send(self, order: Order) -> None:
        """See `Worker`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(order)

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """See `Worker`."""
        try:
            while not self.connection.poll(POLL_SECONDS):
                meanwhile()
            report: Report = self.connection.recv()
        except (EOFError, OSError):
            return None
        return report

    def kill(self) -> None:
        """See `Worker`."""
        self._process.kill()

    def last_words(self) -> Ending:
        """See `Worker`."""
        stop_all([self])
        code = self._process.wait()
        return Ending(
            cause=f"the worker died (exit code {code}; see {self.log})",
            last_line=last_line(self.log),
            out_of_memory=code == -signal.SIGKILL and self._ran_out_of_memory(),
        )


class LocalExecutor:
    """Workers as processes of this machine. Their logs are in the folder `logs`."""

    grows = False

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._selector = selectors.DefaultSelector()  # the kernel keeps the list, so that many workers cost no more
        self._pipes: dict[LocalWorker, int] = {}
        self._oom_kills = oom_kills(os.getpid())

    def start(self, setup: Setup, number: int) -> LocalWorker:
        """See `Executor`."""
        worker = LocalWorker(setup, self._logs / f"worker-{number}.log", self._ran_out_of_memory)
        self._pipes[worker] = worker.connection.fileno()
        self._selector.register(self._pipes[worker], selectors.EVENT_READ, worker)
        return worker

    def heard(self, seconds: float) -> list[Worker]:
        """See `Executor`."""
        return [key.data for key, _ in self._selector.select(seconds)]

    def places(self, here: int) -> int:
        """See `Executor`."""
        return here

    def avoid(self, worker: Worker) -> bool:
        """See `Executor`: there is one machine."""
        return False

    def room(self) -> str:
        """See `Executor`."""
        return ""

    def stop(self, workers: Sequence[Worker]) -> None:
        """See `Executor`."""
        ours = [worker for worker in workers if isinstance(worker, LocalWorker)]
        for worker in ours:
            if (pipe := self._pipes.pop(worker, None)) is not None:
                self._selector.unregister(pipe)
        stop_all(ours)

    def close(self) -> None:
        """See `Executor`."""
        self._selector.close()

    def _ran_out_of_memory(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kills(os.getpid())
        return self._oom_kills > before


def last_line(log: Path) -> str:
    """The last line of a worker's log."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "its log is empty"


def stop_all(workers: Sequence[LocalWorker]) -> None:
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
        | processes.environment_without_folder()
        | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # makes cuBLAS deterministic
            "NCCL_NVLS_ENABLE": "0",  # it sums in another order from call to call
            "NCCL_ALGO": "Ring",
        }
    )
    return {key: value for key, value in environment.items() if key not in PINNING}


def pinning_variables() -> list[str]:
    """The variables here that would pin every training to the same cores; workers do not get them."""
    return [key for key in PINNING if os.environ.get(key)]


def spawn(threads: int, log: IO[bytes] | None = None) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts a worker process, which writes to `log` or where this process writes; returns it, and the pipe to it."""
    return processes.start("hpstudy.running.worker_main", worker_environment(threads), log)
