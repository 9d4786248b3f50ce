"""SIGINT and SIGTERM end a study within seconds and leave checkpoints, whatever W&B and the workers do."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.running import any_alive, curves, run_here, start_cli, trials, wait_for_step, workers_of

LONG = {"tokens = 5120": "tokens = 1280000"}  # 5,000 steps, so that a run is in training when the signal comes


@pytest.fixture
def hanging_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's server accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield


def test_one_ctrl_c_ends_cleanly_and_prints_how_to_resume(tiny_file, tiny, tmp_path, uninterrupted):
    runs, path = tmp_path / "runs", tiny_file()
    process = start_cli(path, runs)
    wait_for_step(runs, "search-0001", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"hpstudy run {path} --runs {runs}" in stderr
    assert "Traceback" not in stderr
    study = tiny()
    store = run_here(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_ctrl_c_says_from_which_step_each_run_resumes_and_so_it_does(tiny_file, tmp_path: Path):
    runs, path = tmp_path / "runs", tiny_file(replace=LONG)
    process = start_cli(path, runs, workers="2")
    for run_id in ("search-0000", "search-0001"):
        wait_for_step(runs, run_id, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    *_, first, second, stopped, resume = stderr.splitlines()
    said = r"(search-000[01]): checkpoint written; resumes after step ([\d,]+)"
    found = {run_id: step.replace(",", "") for run_id, step in re.findall(said, f"{first}\n{second}")}
    assert found.keys() == {"search-0000", "search-0001"}
    assert stopped == "stopped; every finished run is kept. Resume with:"
    assert resume == f"  hpstudy run {path} --runs {runs} --wandb disabled --workers 2"
    again = start_cli(path, runs, workers="2")
    lines = []
    while len(resumed := re.findall(r"(search-000[01]): resumes after step (\d+)", "".join(lines))) < 2:
        lines.append(again.stderr.readline())
        assert lines[-1], lines
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    assert dict(resumed) == found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.usefixtures("hanging_wandb")
def test_a_signal_leaves_a_checkpoint_and_ends_within_ten_seconds_even_if_wandb_hangs(tiny_file, tmp_path, number):
    runs, path = tmp_path / "runs", tiny_file(replace=LONG)
    process = start_cli(path, runs, wandb="online")
    wait_for_step(runs, "search-0000", process)
    began = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert f"hpstudy run {path} --runs {runs}" in stderr
    assert "Traceback" not in stderr
    assert (runs / "tiny" / "search-0000" / "checkpoint.pt").exists()


def test_a_signal_to_every_process_at_once_leaves_a_checkpoint_too(tiny_file, tmp_path: Path):
    runs, path = tmp_path / "runs", tiny_file(replace=LONG)
    process = start_cli(path, runs, workers="1")
    wait_for_step(runs, "search-0000", process)
    for pid in (*workers_of(process.pid), process.pid):  # as when a cluster takes the machine
        os.kill(pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "died" not in stderr
    assert (runs / "tiny" / "search-0000" / "checkpoint.pt").exists()


def test_four_hung_workers_do_not_delay_a_stop(tiny_file, tiny, tmp_path: Path):
    changes = {"parallel = 2": "parallel = 4", "trials = 5": "trials = 4", "tokens = 5120": "tokens = 128000"}
    runs, path = tmp_path / "runs", tiny_file(replace=changes)
    process = start_cli(path, runs, workers="4")
    wait_for_step(runs, "search-0003", process)
    workers = workers_of(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert (len(workers), process.returncode) == (4, 130)
    assert not any_alive(workers)
    study = tiny(replace=changes)
    stores = run_here(study, runs, workers=2), run_here(study, tmp_path / "whole", workers=2)
    assert curves(stores[0]) == curves(stores[1])
    assert trials(study, stores[0]) == trials(study, stores[1])


def test_a_second_ctrl_c_stops_at_once(tiny_file, tmp_path: Path):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(replace=LONG), runs)
    wait_for_step(runs, "search-0000", process)
    workers = workers_of(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # so that the driver waits for their last checkpoints
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 4  # one second of them is the time that hung workers get to end
    assert process.returncode == 130
    assert not any_alive(workers)
