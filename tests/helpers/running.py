"""Runs studies, in this process or in another, and finds what is compared between two of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.records import Run, RunResult, StepRecord
from hpstudy.running.driver import run_study
from hpstudy.running.interface import Interrupted, Options, StopRequest
from hpstudy.search import Forecast, Search
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

CLI = "import hpstudy.cli; hpstudy.cli.main()"  # for `python -c`
TIMES = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


class Watch:
    """A progress view that keeps what it is shown, and may act on a step."""

    def __init__(self, on_step: Callable[[Run, StepRecord], None] = lambda *_: None) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.lines: list[str] = []
        self._on_step = on_step

    def phase(
        self, name: str, num_runs: int, finished: Sequence[tuple[Run, RunResult]], most: int | None = None
    ) -> None:
        self.finished += [run.run_id for run, _ in finished]

    def grow(self, num_runs: int, most: int) -> None:
        """Shows nothing."""

    def earlier(self, finished: Sequence[Run]) -> None:
        """Shows nothing."""

    def start(self, run: Run, tokens: int = 0) -> None:
        self.started.append(run.run_id)

    def step(self, run: Run, record: StepRecord) -> None:
        self._on_step(run, record)

    def forecast(self, run: Run, forecast: Forecast) -> None:
        """Shows nothing."""

    def finish(self, run: Run, result: RunResult) -> None:
        self.finished.append(run.run_id)

    def say(self, line: str) -> None:
        self.lines.append(line)


def run_here(
    study: Study,
    runs: Path,
    *,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    wandb: Any = "disabled",
    device: str = "cpu",
    trials: int | None = None,
    workers: int = 1,
    checkpoint_seconds: float = 60.0,
    accept_environment: bool = False,
) -> RunStore:
    """Runs or resumes a study with the driver in this process."""
    options = Options(
        runs=runs,
        device=device,
        wandb=wandb,
        trials=trials,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        accept_environment=accept_environment,
    )
    return run_study(study, options, watch or Watch(), stop or StopRequest())


@contextmanager
def slow_workers() -> Iterator[None]:
    """Workers that start inside take 20 ms more a step, or their short runs may end before a test acts at a step."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent / "slow_workers"), before]))
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def interrupt(study: Study, runs: Path, run_id: str, step: int) -> Watch:
    """Runs a study and stops it once that step is recorded."""
    stop = StopRequest()

    def request(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.run_id, record.step) == (run_id, step)

    watch = Watch(request)
    with slow_workers(), pytest.raises(Interrupted):
        run_here(study, runs, watch=watch, stop=stop)
    return watch


def curves(store: RunStore) -> dict[str, list[StepRecord]]:
    """The records of every run, without times."""
    return {view.run_id: [replace(r, **TIMES) for r in view.records()] for view in store.runs()}


def trials(study: Study, store: RunStore) -> list[Any]:
    """The trials of the search as its journal holds them."""
    return Search(study, store.root / "optuna.journal", read_only=True).trials()


def run_at_start(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every Python that this process starts run some code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))


def workers_of(driver: int, module: str = "worker_main") -> list[int]:
    """Pids of a driver's processes that run a module, by default its workers, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == driver and module.encode() in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
        except (OSError, ValueError):
            continue
    return found


def kill_workers() -> None:
    """Kills the workers of a driver in this process, which must have some."""
    while not (pids := workers_of(os.getpid())):  # /proc shows the command line of a new process a moment late
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def any_alive(pids: Sequence[int]) -> bool:
    """Whether any of these processes exists."""
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


# for run_at_start: each worker dies before it reports step 10 of trial 1
DEADLY = """
import os
from multiprocessing.connection import Connection

send, recv, doomed = Connection.send, Connection.recv, []


def noting_recv(self):
    order = recv(self)
    if hasattr(order, "run"):
        doomed[:] = [order.run.run_id == "search-0001"]
    return order


def kill_or_send(self, report):
    if doomed == [True] and getattr(getattr(report, "record", None), "step", 0) == 10:
        os.kill(os.getpid(), 9)
    send(self, report)


Connection.recv, Connection.send = noting_recv, kill_or_send
"""
# a pruner that never prunes: the worker waits for a decision after each evaluation, so a test can kill it at that step
AWAITED = 'pruner = { name = "median", startup = 100 }'


def start_cli(path: Path, runs: Path, wandb: str = "disabled", workers: str = "auto") -> subprocess.Popen[str]:
    """`hpstudy run` in another process."""
    flags = ["--runs", str(runs), "--wandb", wandb, "--workers", workers]
    return subprocess.Popen(
        [sys.executable, "-c", CLI, "run", str(path), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(runs: Path, run_id: str, process: subprocess.Popen[str]) -> None:
    """Waits until a run of the tiny study has a step. Fails if the process ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = runs / "tiny" / run_id / "steps.jsonl"
        if steps.exists() and steps.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{run_id} did not begin")
