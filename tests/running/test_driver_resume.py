"""Studies that are stopped, killed and run again end as if they had never been interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.local import LocalExecutor
from hpstudy.tracking.seal import HEADER, MARK
from hpstudy.tracking.store import RunStore
from tests.helpers.running import (
    Watch,
    any_alive,
    curves,
    interrupt,
    run_here,
    start_cli,
    trials,
    wait_for_step,
    workers_of,
)


def test_a_study_that_is_run_again_trains_nothing(tiny, tmp_path: Path):
    study = tiny()
    first = curves(run_here(study, tmp_path))
    watch = Watch()
    assert curves(run_here(study, tmp_path, watch=watch)) == first
    assert watch.started == []
    assert watch.finished == list(first)


def test_a_study_without_a_format_resumes_with_a_later_version_that_has_other_defaults(
    tiny, tmp_path: Path, request: pytest.FixtureRequest
):
    unstated = {"format = 1": "", 'high = 3e-2, scale = "log"': "high = 3e-2"}
    store = run_here(tiny(replace=unstated), tmp_path)
    frozen, first = (store.root / "study.toml").read_text(), curves(store)
    assert frozen.startswith("format = 4 ")
    request.getfixturevalue("later_format")
    later = tiny(replace=unstated)
    assert (later.format, later.space["lr"].scale) == (5, "linear")
    assert curves(run_here(later, tmp_path)) == first
    assert (store.root / "study.toml").read_text() == frozen


def test_a_finished_study_starts_no_worker_even_in_another_environment(tiny, tmp_path: Path, monkeypatch):
    study = tiny()
    store = run_here(study, tmp_path)
    before = store.read_json("environment.json")
    store.write_json("environment.json", before | {"torch": "1.0"})  # only what trains depends on it
    monkeypatch.setattr(LocalExecutor, "start", None)
    run_here(study, tmp_path)
    assert store.read_json("environment.json") == before | {"torch": "1.0"}


def test_a_grown_study_is_kept_only_once_a_worker_is_admitted(tiny, tmp_path: Path):
    store = run_here(tiny(replace={"trials = 5": "trials = 1"}), tmp_path)
    store.write_json("environment.json", store.read_json("environment.json") | {"torch": "1.0"})
    with pytest.raises(UserError, match=r"torch was 1\.0"):
        run_here(tiny(replace={"trials = 5": "trials = 2"}), tmp_path)
    assert store.read_json("study.json")["budget.trials"] == 1


def test_more_trials_extend_a_study_as_if_it_had_been_longer(tiny, tmp_path: Path, uninterrupted):
    short = tiny(replace={"trials = 5": "trials = 3"})
    run_here(short, tmp_path)
    store = run_here(short, tmp_path, trials=5)
    assert (trials(short, store), curves(store)) == uninterrupted


@pytest.mark.parametrize(("run_id", "step"), [("search-0000", 1), ("search-0003", 7)])
def test_a_stopped_study_resumes_to_the_same_trials_and_curves(tiny, tmp_path, uninterrupted, run_id, step):
    study = tiny()
    interrupt(study, tmp_path, run_id, step)
    store = run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_driver_that_is_killed_leaves_no_worker_and_resumes_to_the_same(tiny_file, tiny, tmp_path, uninterrupted):
    runs = tmp_path / "runs"
    process = start_cli(tiny_file(), runs)
    wait_for_step(runs, "search-0001", process)
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any_alive(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any_alive(workers)
    study = tiny()
    store = run_here(study, runs)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_second_driver_is_refused_with_the_pid_of_the_first(tiny, tmp_path: Path):
    study, refused = tiny(replace={"trials = 5": "trials = 1"}), []

    def start_another(_: Run, record: StepRecord) -> None:
        if record.step == 3:
            with pytest.raises(UserError) as error:
                run_here(study, tmp_path)
            refused.append(str(error.value))

    store = run_here(study, tmp_path, watch=Watch(start_another))
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
    store = run_here(tiny(), runs, wandb="offline")
    assert offline_rows(store) == {view.run_id: 20 for view in store.runs()}
    assert len(offline_rows(store)) == 5


def test_a_run_of_a_version_that_named_no_kind_of_machine_resumes_from_its_checkpoint(
    tiny, tmp_path: Path, uninterrupted
):
    study = tiny()
    interrupt(study, tmp_path, "search-0001", 7)
    folder = tmp_path / "tiny" / "search-0001"
    header, mark = (json.loads((folder / name).read_text()) for name in (HEADER, MARK))
    del header["kind"]
    (folder / HEADER).write_text(json.dumps(header))
    mark[HEADER] = hashlib.sha256((folder / HEADER).read_bytes()).hexdigest()
    (folder / MARK).write_text(json.dumps(mark))
    watch = Watch()
    store = run_here(study, tmp_path, watch=watch)
    assert any(line.startswith("search-0001: resumes after step") for line in watch.lines)
    assert (trials(study, store), curves(store)) == uninterrupted
