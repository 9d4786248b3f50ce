"""What W&B missed is sent from the run store, each row once, whatever failed before."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import whereabouts
from tests.helpers.loopback import Loopback
from tests.helpers.samples import header, result
from tests.helpers.wandb_rows import STEPS, end_session, new_sink, own_keys, same, wait_until


def stored(home: Path) -> RunStore:
    """A study of one finished run."""
    store = RunStore(home / "quickstart")
    store.create()
    writer = store.begin(header())
    for step in STEPS:
        writer.append(step)
    writer.finish(result())
    return store


def send_live(
    store: RunStore, messages: list[str], patience: float, meanwhile: Callable[[], None] = lambda: None
) -> float:
    """Logs a run and calls `meanwhile` after its fifth step. Returns the seconds of the slowest call."""
    sink, longest = new_sink(store.root, "online", messages, patience=patience), 0.0
    sink.begin(header())
    for step in STEPS:
        began = time.monotonic()
        sink.log("search-0007", step)
        longest = max(longest, time.monotonic() - began)
        if step.step == 5:
            meanwhile()
    sink.finish("search-0007", result())
    sink.close(60)
    return longest


def deliver(store: RunStore) -> None:
    """What `hpstudy sync` does, twice."""
    messages: list[str] = []
    for _ in range(2):
        sink = new_sink(store.root, "online", messages)
        for view in store.runs():
            sink.replay(view)
        sink.close(60)
    assert messages == []


def kill_wandb() -> None:
    """Kills wandb's own process."""
    import wandb

    process = wandb.setup()._connection._proc._process
    process.kill()
    process.wait()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, None, "hang"])
def test_rows_that_a_failing_server_missed_are_delivered_once(
    home: Path, server: Loopback, status: int | str | None
) -> None:
    store, messages = stored(home), list[str]()
    server.status = status
    waited = send_live(store, messages, patience=1.0)
    assert waited < 0.1
    assert len(messages) == 1
    end_session()
    server.status = 200
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("at_once", [True, False], ids=["from the start", "in mid-run"])
def test_a_server_that_recovers_gets_each_row_once(home: Path, server: Loopback, at_once: bool) -> None:
    store, messages = stored(home), list[str]()

    def fail() -> None:
        server.status = 503
        threading.Timer(0.5, setattr, (server, "status", 200)).start()

    def fail_once_begun() -> None:
        wait_until(lambda: "id" in server.runs)
        fail()

    if at_once:
        fail()
    send_live(store, messages, 20.0, (lambda: None) if at_once else fail_once_begun)
    assert messages == []
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)


def test_a_server_lost_in_mid_run_gets_the_rest_once(home: Path, server: Loopback) -> None:
    store, messages = stored(home), list[str]()

    def lose() -> None:
        wait_until(lambda: "id" in server.runs)
        server.status = None

    send_live(store, messages, 1.0, lose)
    assert len(messages) == 1
    end_session()
    server.status = 200
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)


def test_rows_lost_with_wandbs_own_process_are_delivered_once(home: Path, server: Loopback) -> None:
    store, messages = stored(home), list[str]()

    def kill() -> None:
        wait_until(lambda: "id" in server.runs)
        kill_wandb()

    send_live(store, messages, 2.0, kill)
    assert len(messages) == 1
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)


def test_rows_of_deleted_offline_files_are_delivered_once(home: Path, server: Loopback) -> None:
    store, messages = stored(home), list[str]()
    sink = new_sink(store.root, "offline", messages)
    for view in store.runs():
        sink.replay(view)
    sink.close(30)
    shutil.rmtree(store.root / "wandb")
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"mode": "online"}', "\xff"])
def test_a_run_whose_delivery_is_unknown_is_sent_again_and_no_row_arrives_twice(
    home: Path, server, damage: str
) -> None:
    store = stored(home)
    deliver(store)
    (view,) = store.runs()
    (view.folder / "wandb.json").write_bytes(damage.encode("latin-1"))
    assert whereabouts(store.root, "quickstart") == "none"
    deliver(store)
    assert same(own_keys(server.runs["id"].history), STEPS)
    assert json.loads((view.folder / "wandb.json").read_text())["mode"] == "online"


def test_a_store_that_is_replayed_several_times_reaches_the_server_once(home: Path, server: Loopback) -> None:
    store = RunStore(home / "quickstart")
    store.create()
    for trial in range(2):
        writer = store.begin(header(f"search-000{trial}", wandb_id=f"id-{trial}", trial=trial))
        for step in STEPS:
            writer.append(step)
        writer.finish(result())
    messages: list[str] = []
    for mode in ("offline", "online", "online", "offline"):
        sink = new_sink(store.root, mode, messages)
        for view in store.runs():
            sink.replay(view)
        sink.close(30)
    assert messages == []
    assert set(server.runs) == {"id-0", "id-1"}
    assert all(same(own_keys(run.history), STEPS) for run in server.runs.values())
    assert list((store.root / "wandb").glob("offline-run-*")) == []
    assert whereabouts(store.root, "quickstart").endswith("/p/groups/quickstart")
