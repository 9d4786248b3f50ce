"""W&B's offline files of finished runs, written by processes of their own.

A row takes wandb about half a millisecond of a core, here and in a process of its own. A writer process writes whole
runs, and nothing outside W&B's folder; the driver marks each run once its file is complete.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection

from hpstudy import processes
from hpstudy.errors import MachineError
from hpstudy.system import cores
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_runs import WandbRuns, end, finished_rows, in_short, wandb_process

ROWS = 5_000  # for which another writer is worth its start, which takes a second of a core
MOST_WRITERS = 16  # each takes some 200 MB of memory
LOW_ROWS = 1_000  # for which the first one is started while runs train
LOW_CORES = 4  # per writer while runs train
LOW_SECONDS = 2.0  # after training, for a writer of the lowest priority to end its run
GRACE_SECONDS = 2.0  # for a writer to end by itself
GO = {"GOMAXPROCS": "1", "GOGC": "400"}
"""For wandb's own process, a Go program: on one core, collecting memory less often, a row takes 0.7 of the CPU time."""


class WandbFiles:
    """The runs whose files are to be written, and the writer processes.

    While runs train, the writers have the lowest priority. Once a file is wanted `now`, writers of full priority join
    them, as many as the rows are worth, at most one per core. The first failure ends them all.
    """

    def __init__(self, runs: WandbRuns, on_written: Callable[[str, str], None], on_failure: Callable[[str], None]):
        """A thread calls `on_written` with a run's id and its id on W&B, or `on_failure` once, with the reason."""
        self._runs, self._on_written, self._on_failure = runs, on_written, on_failure
        self._changed = threading.Condition()
        self._waiting: dict[str, int] = {}  # run id -> its rows, in order
        self._writing: dict[str, int] = {}
        self._seen: set[str] = set()
        self._writers: list[_Writer] = []
        self._threads: dict[threading.Thread, bool] = {}  # whether its writer has the lowest priority
        self._now = self._closed = self._killed = False

    def write(self, run_id: str, rows: int, *, now: bool) -> None:
        """Has the file of a finished run written, once: `now`, or else as far as it costs training nothing."""
        with self._changed:
            self._now |= now
            if run_id not in self._seen:
                self._seen.add(run_id)
                self._waiting[run_id] = rows
            self._start_writers()
            self._changed.notify()

    def drain(self, meanwhile: Callable[[], None]) -> None:
        """Waits until all files are written, or one has failed. Calls `meanwhile` several times a second."""
        patience = time.monotonic() + LOW_SECONDS
        while not self._wait(0.2):
            meanwhile()
            if time.monotonic() > patience:
                self._end_low()

    def close(self, timeout: float, *, hurried: bool) -> bool:
        """Ends the writers, after at most `timeout` seconds for files that are wanted now. Returns whether it has them.

        `hurried` leaves them out, as it does files that are not wanted now.
        """
        done = hurried or not self._now or self._wait(timeout)
        self._end_all(kill=hurried or not (done and self._now))
        for thread in self._threads:
            thread.join(GRACE_SECONDS)
        return done

    def _wait(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not (self._waiting or self._writing), timeout)

    def _start_writers(self) -> None:
        """Starts as many writers as the waiting rows are worth."""
        rows, low = sum(self._waiting.values()), not self._now
        if self._closed or rows < (LOW_ROWS if low else 1):
            return
        most = max(1, cores() // LOW_CORES) if low else cores()
        wanted = min(most, MOST_WRITERS, len(self._waiting) + len(self._writing), 1 + rows // ROWS)
        for _ in range(wanted - sum(other == low for other in self._threads.values())):
            thread = threading.Thread(target=self._serve, args=[low], name="wandb-files", daemon=True)
            self._threads[thread] = low
            thread.start()

    def _serve(self, low: bool) -> None:
        """Has a process of its own write one run after the other."""
        run_id = None
        try:
            with closing(_Writer(self._runs, low=low)) as writer:
                with self._changed:
                    self._writers.append(writer)
                while (run_id := self._next()) is not None:
                    self._on_written(run_id, writer.write(run_id))
                    with self._changed:
                        del self._writing[run_id]
                        self._changed.notify_all()
                if self._killed:  # before it was one of the writers
                    writer.kill()
        except Exception as error:
            self._failed(run_id, low, error)

    def _next(self) -> str | None:
        """Takes the next run; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            run_id = next(iter(self._waiting))
            self._writing[run_id] = self._waiting.pop(run_id)
            return run_id

    def _failed(self, run_id: str | None, low: bool, error: Exception) -> None:
        """Ends all writers, unless this one was ended itself."""
        with self._changed:
            if self._closed:
                return
            if low and self._now and run_id:  # ended by _end_low
                self._waiting = {run_id: self._writing.pop(run_id), **self._waiting}
                del self._threads[threading.current_thread()]
                self._start_writers()
                self._changed.notify()
                return
        self._end_all(kill=True)
        self._on_failure(in_short(error))

    def _end_low(self) -> None:
        """Ends the writers of the lowest priority, whose cores others use. Others write their runs again."""
        with self._changed:
            for writer in self._writers:
                if writer.low:
                    writer.kill()

    def _end_all(self, *, kill: bool) -> None:
        with self._changed:
            self._closed, self._killed = True, kill
            for writer in self._writers if kill else ():
                writer.kill()
            self._changed.notify_all()


class _Writer:
    """The driver's end of one writer process."""

    def __init__(self, runs: WandbRuns, *, low: bool) -> None:
        self.low, self._has_written = low, False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = GO | processes.environment_without_folder()
        self._process, self._connection = processes.start("hpstudy.tracking.wandb_files", environment, self._log)
        self._send((runs, low))

    def write(self, run_id: str) -> str:
        """Has a run's file written, and returns the run's id on W&B. Raises MachineError if it cannot be had."""
        self._send(run_id)
        try:
            wandb_id, problem = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            problem = ": ".join([f"the process that writes W&B's files died (exit code {code})", *said])
        if problem:
            raise MachineError(problem)
        self._has_written = True
        return str(wandb_id)

    def _send(self, order: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(order)

    def kill(self) -> None:
        """Ends the process at once; wandb's own process follows it."""
        self._process.kill()

    def close(self) -> None:
        """Lets the process end, or ends it if it has written nothing and may still be starting."""
        self._connection.close()
        if self._has_written:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        self.kill()
        self._process.wait()
        self._log.close()


def main() -> None:
    """Serves the pipe whose file descriptor is the only argument: what a writer process does."""
    processes.follow_parent()
    with (
        Connection(int(sys.argv[1])) as parent,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        runs, low = parent.recv()
        if low:
            processes.lower_priority(os.getpid())
        while True:
            run_id = parent.recv()
            try:
                answer = _write(runs, run_id, low), ""
            except Exception as error:
                answer = "", in_short(error)
            parent.send(answer)


def _write(runs: WandbRuns, run_id: str, low: bool) -> str:
    """Writes the offline file of a finished run. Returns the run's id on W&B."""
    view = RunStore(runs.directory).view(run_id)
    assert view.result is not None
    run = runs.open(view.header, "offline", trains=False)
    if low and (own := wandb_process()):
        processes.lower_priority(own.pid)  # it has a session of its own
    for step, row in finished_rows(view):
        run.log(row, step=step)
    end(run, view.result)
    return view.header.wandb_id
