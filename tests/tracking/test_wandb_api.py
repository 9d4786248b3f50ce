"""What the sink sent to a W&B server on 127.0.0.1 comes back as the tables of the run store."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from loopback import HISTORY, Loopback, ServerRun
from tracking_samples import header, record, result

from hpstudy.analysis.frames import load
from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink

PATH = "wandb:e/p/quickstart"


class ReadableLoopback(Loopback):
    """Answers the queries of wandb's public API too, from what was streamed to it."""

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "u", "entity": "e", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
        if "query Viewer" in query or "query GetDefaultEntity" in query:
            return {"data": {"viewer": viewer}}
        if "query Runs(" in query:
            group = json.loads(variables["filters"])["group"]
            found = [self._node(name, run) for name, run in self.runs.items() if run.upserts[0]["groupName"] == group]
            page = {
                "edges": [{"node": node, "cursor": node["id"]} for node in found],
                "pageInfo": {"hasNextPage": False},
            }
            return {"data": {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": page}}}
        if "RunHistoryKeys" in query:
            steps = [row["_step"] for row in self.runs[variables["name"]].history]
            return {"data": {"project": {"run": {"historyKeys": {"lastStep": max(steps, default=-1)}}}}}
        if "RunParquetHistory" in query:
            return {"data": {"project": {"run": {"parquetHistory": {"liveData": [], "parquetUrls": []}}}}}
        if "HistoryPage" in query:
            steps = range(variables["minStep"], variables["maxStep"])
            page = [json.dumps(row) for row in self.runs[variables["run"]].history if row["_step"] in steps]
            return {"data": {"project": {"run": {"history": page}}}}
        return super()._graphql(query, variables)

    @staticmethod
    def _node(name: str, run: ServerRun) -> dict[str, Any]:
        return {
            "id": name,
            "projectId": "1",
            "name": name,
            "state": "finished",
            "config": run.upserts[-1]["config"],
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "user": {"name": "u", "username": "u"},
        }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadableLoopback]:
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with ReadableLoopback() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # settings are read once a session
        yield server
        wandb.teardown()


@pytest.fixture
def store(tmp_path: Path, server: ReadableLoopback) -> RunStore:
    """Runs that diverged, finished, failed before step 1 and go on: in the store, and the same on the server."""
    store = RunStore(tmp_path / "runs" / "quickstart")
    store.create()
    store.freeze_study("", {})
    said: list[str] = []
    sink = WandbSink(
        mode="online", project="p", entity="e", study="quickstart", directory=store.root, extra={}, say=said.append
    )
    healthy = [record(step, evaluated=step == 10) for step in range(1, 21)]
    diverged = [record(1), record(2), replace(record(3, loss=math.nan), grad_norm=math.inf)]
    bad = result(Outcome.DIVERGED, steps=3, train_loss=math.nan)
    for head, records, end in (
        (header("search-0003", trial=3, wandb_id="q-3"), diverged, bad),
        (header("search-0001", trial=1, wandb_id="q-1"), healthy, result()),
        (header("search-0002", trial=2, wandb_id="q-2"), [], result(Outcome.FAILED, steps=0)),
        (header("baseline-s0", phase="baseline", trial=None, wandb_id="q-b"), healthy[:7], None),
    ):
        writer = store.begin(head)
        sink.begin(head)
        for step in records:
            writer.append(step)
            sink.log(head.run.run_id, step)
        if end:
            writer.finish(end)
            sink.finish(head.run.run_id, end)
        writer.close()
    sink.close(timeout=30)
    assert said == []
    assert len(server.runs) == 4
    return store


def test_wandb_gives_the_same_tables_as_the_run_store(store: RunStore) -> None:
    ours, theirs = load("quickstart", store.root.parent), load(PATH)
    pd.testing.assert_frame_equal(theirs.trials, ours.trials)
    pd.testing.assert_frame_equal(theirs.steps, ours.steps)
    assert len(theirs.steps) == 3 + 20 + 7


@pytest.mark.usefixtures("store")
def test_history_rows_that_are_missing_are_an_error(server: ReadableLoopback) -> None:
    assert len(load(PATH).steps) == 30
    del server.runs["q-1"].lines[HISTORY][4]
    with pytest.raises(MachineError, match=r"q-1 \(search-0001\): 20 history rows expected, but got 19"):
        _ = load(PATH).steps


@pytest.mark.usefixtures("store")
def test_a_run_that_is_there_twice_is_refused(server: ReadableLoopback) -> None:
    server.runs["q-1-again"] = server.runs["q-1"]
    with pytest.raises(UserError, match="search-0001 are there more often"):
        load(PATH)


@pytest.mark.usefixtures("server")
def test_a_study_that_wandb_does_not_know_is_named() -> None:
    with pytest.raises(UserError, match='e/p has no runs of a study "none"'):
        load("wandb:e/p/none")


@pytest.mark.parametrize("path", ["wandb:", "wandb:e/p", "wandb:e//s"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="wandb:ENTITY/PROJECT/STUDY"):
        load(path)


@pytest.mark.usefixtures("server")
def test_without_a_login_it_says_so_and_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UserError, match=r"no login for http://127.0.0.1.*wandb login"):
        load(PATH)


def test_a_server_that_refuses_is_one_error_and_no_traceback(server: ReadableLoopback) -> None:
    server.status = 401
    with pytest.raises(MachineError, match="W&B did not answer"):
        load(PATH)
