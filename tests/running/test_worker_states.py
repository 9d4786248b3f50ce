"""What each worker does, in a file that is written on change, with when it began."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.running import worker_states
from hpstudy.running.worker_states import Doing, WorkersFile, WorkerState, read_workers
from hpstudy.tracking.lease import holder
from hpstudy.tracking.store import RunStore
from tests.helpers.running import Watch, run_here


def state(doing: Doing, run: str | None = None) -> WorkerState:
    return WorkerState(number=0, node="", kind="", state=doing, run=run)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs" / "tiny")
    store.create()
    return store


def test_the_file_is_written_on_change_and_not_too_often(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], list[Any]()
    monkeypatch.setattr(worker_states.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(RunStore, "write_json", lambda *found: written.append((clock[0], found[2]["workers"])))
    file = WorkersFile(store)
    doings = {100.0: Doing.STARTS, 101.9: Doing.IDLE, 102.0: Doing.IDLE, 104.0: Doing.IDLE, 106.1: Doing.TRAINS}
    for clock[0], doing in doings.items():
        file.update(lambda doing=doing: [state(doing)], lambda: "")
    assert [(at, workers[0]["state"]) for at, workers in written] == [
        (100.0, Doing.STARTS), (102.0, Doing.IDLE), (106.1, Doing.TRAINS)
    ]  # fmt: skip


def test_a_state_keeps_the_time_at_which_it_began(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_states, "WRITE_SECONDS", 0.0)
    file = WorkersFile(store)
    found = []
    for doing in (Doing.STARTS, Doing.STARTS, Doing.IDLE):
        monkeypatch.setattr(worker_states, "_now", lambda: f"time {len(found)}")
        file.update(lambda doing=doing: [state(doing)], lambda: "")
        found.append(json.loads((store.root / "workers.json").read_text())["workers"][0]["since"])
    assert found == ["time 0", "time 0", "time 2"]


def test_a_study_on_this_machine_says_what_its_workers_do_until_it_ends(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_states, "WRITE_SECONDS", 0.0)
    store, seen = RunStore(tmp_path / "tiny"), []

    def look(*_: object) -> None:
        workers = read_workers(store, holder(store.root))
        assert workers is not None
        seen.append([(worker.number, worker.node, worker.state, worker.run) for worker in workers.workers])

    run_here(tiny(replace={"trials = 5": "trials = 2", "parallel = 2": "parallel = 1"}), tmp_path, watch=Watch(look))
    assert seen[5] == [(0, "", Doing.TRAINS, "search-0000")]
    assert seen[-1] == [(0, "", Doing.TRAINS, "search-0001")]
    assert not (store.root / "workers.json").exists()
