"""Studies that are stopped, killed and run again end as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.interface import Interrupted, StopRequest
from hpstudy.tracking.store import RunStore
from studies import Watch, curves, go, inherit, trials
from tests.faults import workers_of


def test_a_study_that_is_run_again_trains_nothing(tiny, tmp_path: Path):
    study = tiny()
    first = curves(go(study, tmp_path))
    watch = Watch()
    assert curves(go(study, tmp_path, watch=watch)) == first
    assert watch.started == []
    assert watch.finished == list(first)


def test_more_trials_extend_a_study_as_if_it_had_been_longer(tiny, tmp_path: Path, uninterrupted):
    short = tiny(replace={"trials = 5": "trials = 3"})
    go(short, tmp_path)
    store = go(short, tmp_path, trials=5)
    assert (trials(short, store), curves(store)) == uninterrupted


@pytest.mark.parametrize(("trial", "step"), [(0, 1), (3, 7)])
def test_a_stopped_study_resumes_to_the_same_trials_and_curves(tiny, tmp_path, uninterrupted, trial, step):
    study, stop = tiny(), StopRequest()

    def ask(run: Run, record: StepRecord) -> None:
        stop.requested = stop.requested or (run.trial, record.step) == (trial, step)

    with pytest.raises(Interrupted):
        go(study, tmp_path, watch=Watch(ask), stop=stop)
    store = go(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_worker_that_is_killed_is_replaced_and_its_run_begins_again(tiny, tmp_path: Path, uninterrupted):
    study = tiny()
    killed: list[int] = []

    def kill(run: Run, record: StepRecord) -> None:
        if (run.trial, record.step) == (2, 5) and not killed:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    watch = Watch(kill)
    store = go(study, tmp_path, watch=watch)
    assert len(killed) == 1
    assert watch.started.count("search-0002") == 2
    assert any("exit code -9" in line for line in watch.said)
    assert (trials(study, store), curves(store)) == uninterrupted


DEADLY = """
import os
from multiprocessing.connection import Connection

send = Connection.send


def kill_or_send(self, report):
    if getattr(report, "run_id", "") == "search-0001" and getattr(getattr(report, "record", None), "step", 0) == 10:
        os.kill(os.getpid(), 9)
    send(self, report)


Connection.send = kill_or_send
"""
AWAITED = 'pruner = { name = "median", startup = 100 }'  # never prunes: a worker waits for the word and is met in it


def kill_workers() -> None:
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)


def test_a_run_whose_worker_always_dies_fails_and_the_study_goes_on(tiny, tmp_path: Path, monkeypatch):
    inherit(tmp_path / "site", DEADLY, monkeypatch)
    study, watch = tiny(replace={"trials = 5": "trials = 3"}), Watch()
    store = go(study, tmp_path, watch=watch)
    assert [t.state for t in trials(study, store)] == ["complete", "failed", "complete"]
    result = store.result("search-0001")
    assert result.outcome is Outcome.FAILED
    assert "3 times in a row with no new step between" in result.message
    assert (watch.started.count("search-0001"), result.steps) == (3, 9)


def test_a_run_whose_workers_die_goes_on_as_long_as_each_brings_new_steps(tiny, tmp_path: Path, uninterrupted):
    study, deadly = tiny(more=AWAITED), {5, 10, 15}

    def kill(run: Run, record: StepRecord) -> None:
        if run.trial == 1 and record.step in deadly:
            deadly.remove(record.step)  # later lives show it again
            kill_workers()

    watch = Watch(kill)
    store = go(study, tmp_path, watch=watch)
    assert watch.started.count("search-0001") == 4
    assert (trials(study, store), curves(store)) == uninterrupted


def test_workers_that_die_while_they_start_are_replaced_but_not_for_ever(tiny, tmp_path: Path, uninterrupted):
    lives = {"search-0001": 3, "search-0003": 5}  # the first is killed in training, those between at their start

    class Killing(Watch):
        def start(self, run: Run) -> None:
            super().start(run)
            if 1 < self.started.count(run.run_id) < lives.get(run.run_id, 0):
                kill_workers()

    def kill(run: Run, record: StepRecord) -> None:
        if run.run_id in lives and record.step == 5 and watch.started.count(run.run_id) == 1:
            kill_workers()

    study, watch = tiny(more=AWAITED), Killing(kill)
    with pytest.raises(MachineError, match="before it was ready, 3 times in a row"):
        go(study, tmp_path, watch=watch)
    assert "search-0001" in watch.finished
    store = go(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


DRIVER = "import sys; from hpstudy.cli import main; sys.argv = ['hpstudy', *sys.argv[1:]]; main()"


def start_cli(path: Path, runs: Path, wandb: str = "disabled", workers: str = "auto") -> subprocess.Popen[str]:
    flags = ["--runs", str(runs), "--wandb", wandb, "--workers", workers]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, "run", str(path), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(runs: Path, run_id: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = runs / "tiny" / run_id / "steps.jsonl"
        if steps.exists() and steps.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{run_id} did not begin")


def test_a_driver_that_is_killed_leaves_no_worker_and_resumes_to_the_same(tiny_file, tiny, tmp_path, uninterrupted):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(), runs)
    wait_for_step(runs, "search-0001", process)
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    study = tiny()
    store = go(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_ctrl_c_once_ends_cleanly_and_says_how_to_resume(tiny_file, tiny, tmp_path, uninterrupted):
    runs, path = tmp_path / "runs", tiny_file()
    process = start_cli(path, runs)
    wait_for_step(runs, "search-0001", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"hpstudy run {path} --runs {runs}" in stderr
    assert "Traceback" not in stderr
    study = tiny()
    store = go(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_second_driver_is_refused_and_told_who_has_the_study(tiny, tmp_path: Path):
    study, refused = tiny(replace={"trials = 5": "trials = 1"}), []

    def start_another(_: Run, record: StepRecord) -> None:
        if record.step == 3:
            with pytest.raises(UserError) as error:
                go(study, tmp_path)
            refused.append(str(error.value))

    store = go(study, tmp_path, watch=Watch(start_another))
    assert f"another hpstudy (pid {os.getpid()} on" in refused[0]
    assert store.result("search-0000").outcome is Outcome.COMPLETE


def offline_rows(store: RunStore) -> dict[str, int]:
    """History rows in each run's one offline file."""
    rows = {}
    for view in store.runs():
        (file,) = (store.root / "wandb").glob(f"*{view.header.wandb_id}/run-*.wandb")
        leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        lines = subprocess.run(leet, capture_output=True, text=True, check=True).stdout.splitlines()
        rows[view.run_id] = sum('"history"' in line for line in lines)
    return rows


def test_wandb_gets_the_runs_that_were_finished_when_the_driver_was_killed(tiny_file, tiny, tmp_path: Path):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(), runs, wandb="offline")
    wait_for_step(runs, "search-0002", process)
    process.kill()
    process.communicate()
    store = go(tiny(), runs, wandb="offline")
    assert offline_rows(store) == {view.run_id: 20 for view in store.runs()}
    assert len(offline_rows(store)) == 5
