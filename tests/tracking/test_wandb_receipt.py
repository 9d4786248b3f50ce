"""A run counts as delivered only when the server has all of it, whatever happened to any request."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from hpstudy.tracking.store import RunStore
from tests.helpers.loopback import HISTORY, Loopback
from tests.helpers.samples import header, result
from tests.helpers.wandb_rows import STEPS, end_session, new_sink, own_keys, same


def stored(root: Path, wandb_id: str = "id") -> RunStore:
    """A study of one finished run."""
    store = RunStore(root)
    store.create()
    writer = store.begin(header(wandb_id=wandb_id))
    for step in STEPS:
        writer.append(step)
    writer.finish(result())
    return store


def deliver(store: RunStore, *, verify: bool = False, patience: float = 1.0) -> list[str]:
    """What `hpstudy sync` does; returns what it said."""
    messages: list[str] = []
    sink = new_sink(store.root, "online", messages, patience=patience)
    for view in store.runs():
        sink.replay(view, verify=verify)
    sink.close(60)
    end_session()
    return messages


def marked(store: RunStore) -> str | None:
    """The id under which the run counts as delivered."""
    (view,) = store.runs()
    path = view.folder / "wandb.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["id"] if found.get("mode") == "online" else None


def whole(server: Loopback, wandb_id: str) -> bool:
    """Whether the server has each row of the run once, and its end."""
    run = server.runs.get(wandb_id)
    return bool(run) and same(own_keys(run.history), STEPS) and run.exitcode == 0


FAULTS = (401, 403, 413, "html", "half", "dropped", None)
REQUESTS = 13  # of one delivery: asking what is there, opening, rows, closing, reading back
ROWS = 8  # the request that has them


def delivered_despite(server: Loopback, root: Path, fault: int | str | None, request: int) -> None:
    """Delivers a run with one request at fault, then again without faults until it is marked."""
    server.runs.clear()
    server.requests, server.faults = 0, {request: fault}
    store = stored(root)
    deliver(store)
    assert marked(store) is None or whole(server, "id")
    for _ in range(3):
        if marked(store) is None:
            deliver(store)
    assert marked(store) == "id"
    assert whole(server, "id")


def test_a_delivery_has_as_many_requests_as_these_tests_try(home: Path, server: Loopback) -> None:
    assert deliver(stored(home / "quickstart")) == []
    assert (server.requests, whole(server, "id")) == (REQUESTS, True)


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_the_server_did_not_take_are_not_counted_as_delivered(
    home: Path, server: Loopback, fault: int | str | None
) -> None:
    delivered_despite(server, home / "quickstart", fault, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_request_never_marks_a_run_that_is_not_whole(
    home: Path, server: Loopback, fault: int | str | None
) -> None:
    for request in range(REQUESTS):
        delivered_despite(server, home / f"q-{request}", fault, request)


def send_live(store: RunStore, messages: list[str]) -> None:
    """Logs the run as it trains, for 40 seconds: wandb sends rows every 15."""
    sink = new_sink(store.root, "online", messages, patience=2.0)
    sink.begin(header())
    for step in STEPS:
        sink.log("search-0007", step)
        time.sleep(2)
    sink.finish("search-0007", result())
    sink.close(30)
    end_session()


@pytest.mark.slow
def test_rows_lost_in_the_middle_of_a_run_are_sent_again_under_a_new_id(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B takes no step before the last one that it has."""
    store, messages, sent = stored(home / "quickstart"), list[str](), 0
    answer = server.answer

    def forget_the_second(path: str, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal sent
        sent += HISTORY in (body.get("files") or {})
        if sent == 2 and HISTORY in (body.get("files") or {}):
            return {"exitcode": None, "limits": {}}
        return answer(path, body)

    monkeypatch.setattr(server, "answer", forget_the_second)
    send_live(store, messages)
    assert sent == 3
    (line,) = messages
    assert re.match(rf"W&B: search-0007: W&B has 1\d of 20 rows; .*`hpstudy sync quickstart --runs {home}`", line)
    assert marked(store) is None
    assert deliver(store) == []
    assert marked(store) == "id-2"
    assert whole(server, "id-2")
    assert [view.wandb_id for view in store.runs()] == ["id-2"]
    assert server.runs["id"].group == "quickstart (incomplete)"
    assert server.runs["id-2"].group == "quickstart"


def test_a_run_that_the_server_lost_after_its_delivery_is_found_and_sent_again(home: Path, server: Loopback) -> None:
    store = stored(home / "quickstart")
    deliver(store)
    del server.runs["id"].lines[HISTORY][7]
    assert deliver(store) == []
    assert marked(store) == "id"  # it is not asked about again
    assert deliver(store, verify=True) == []
    assert marked(store) == "id-2"
    assert whole(server, "id-2")
    requests = server.requests
    assert deliver(store) == []
    assert server.requests == requests


def test_a_row_whose_value_changed_on_the_server_is_found_by_a_check(home: Path, server: Loopback) -> None:
    store = stored(home / "quickstart")
    deliver(store)
    lines = server.runs["id"].lines[HISTORY]
    lines[7] = json.dumps(json.loads(lines[7]) | {"train/loss": 0.5})
    assert deliver(store, verify=True) == []
    assert marked(store) == "id-2"
    assert whole(server, "id-2")


def test_a_run_that_was_deleted_on_the_server_is_sent_again_under_a_new_id(home: Path, server: Loopback) -> None:
    store = stored(home / "quickstart")
    deliver(store)
    server.runs.clear()
    assert deliver(store, verify=True) == []
    assert (marked(store), list(server.runs)) == ("id-2", ["id-2"])
    assert whole(server, "id-2")


def test_a_run_whose_mark_is_lost_is_found_under_its_second_id(home: Path, server: Loopback) -> None:
    store = stored(home / "quickstart")
    deliver(store)
    del server.runs["id"].lines[HISTORY][7]
    deliver(store, verify=True)
    (view,) = store.runs()
    (view.folder / "wandb.json").unlink()
    assert deliver(store) == []
    assert (marked(store), set(server.runs)) == ("id-2", {"id", "id-2"})


def test_a_whole_run_is_left_alone_by_a_check(home: Path, server: Loopback) -> None:
    store = stored(home / "quickstart")
    deliver(store)
    upserts = len(server.runs["id"].upserts)
    assert deliver(store, verify=True) == []
    assert (marked(store), len(server.runs["id"].upserts)) == ("id", upserts)


def test_a_server_that_never_keeps_rows_is_reported_each_time_and_the_run_stays_unmarked(
    home: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, answer = stored(home / "quickstart"), server.answer

    def keep_no_rows(path: str, body: dict[str, Any]) -> dict[str, Any]:
        (body.get("files") or {}).pop(HISTORY, None)
        return answer(path, body)

    monkeypatch.setattr(server, "answer", keep_no_rows)
    for _ in range(2):
        (line,) = deliver(store)
        assert line.startswith("W&B: search-0007: W&B has 0 of 20 rows")
        assert marked(store) is None
