"""What the sink sends to a W&B server on 127.0.0.1 is read back as the tables of the run store."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpstudy.analysis.frames import load
from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, RunHeader
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_read import fetch_runs
from hpstudy.tracking.wandb_sink import WandbSink
from tests.helpers.loopback import HISTORY, Loopback, ServerRun
from tests.helpers.samples import header, record, result

PATH = "wandb:e/p/quickstart"


def confirm(run_id: str, **values: Any) -> RunHeader:
    return header(run_id, phase="confirm", seed=101, **values)


@pytest.fixture
def store(tmp_path: Path, server: Loopback) -> RunStore:
    """Runs that diverged, finished, failed before step 1 or are unfinished, in a store and on the server."""
    store = RunStore(tmp_path / "runs" / "quickstart")
    store.create()
    store.freeze_study("", {})
    messages: list[str] = []
    sink = WandbSink(mode="online", project="p", entity="e", directory=store.root, extra={}, say=messages.append)
    healthy = [record(step, evaluated=step == 10) for step in range(1, 21)]
    diverged = [record(1), record(2), replace(record(3, loss=math.nan), grad_norm=math.inf)]
    bad = result(Outcome.DIVERGED, steps=3, train_loss=math.nan)
    for head, records, end in (
        (header("search-0003", trial=3, wandb_id="q-3"), diverged, bad),
        (header("search-0001", trial=1, wandb_id="q-1"), healthy, result()),
        (header("search-0002", trial=2, wandb_id="q-2"), [], result(Outcome.FAILED, steps=0)),
        (header("baseline-s0", phase="baseline", trial=None, wandb_id="q-b"), healthy[:7], None),
        (confirm("confirm-0001-s101", trial=1, of="search-0001", wandb_id="q-c"), healthy, result()),
        (confirm("confirm-0001-s101-t75", trial=1, of="search-0001", fraction=0.75, wandb_id="q-d"), [], None),
        (confirm("confirm-tuned-lr-0004-s101", trial=4, of="tuned-lr-0004", wandb_id="q-e"), [], None),
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
    assert messages == []
    assert len(server.runs) == 7
    return store


def test_wandb_has_the_same_tables_as_the_run_store(store: RunStore) -> None:
    ours, theirs = load("quickstart", store.root.parent), load(PATH)
    pd.testing.assert_frame_equal(theirs.trials, ours.trials)
    pd.testing.assert_frame_equal(theirs.steps, ours.steps)
    assert len(theirs.steps) == 3 + 20 + 7 + 20


@pytest.mark.parametrize("runs", [{"q-3", "q-b", "q-c", "q-d", "q-e"}, {"q-d"}], ids=["all", "one"])
def test_runs_of_older_versions_without_of_and_fraction_load_with_both(
    store: RunStore, server: Loopback, runs: set[str]
) -> None:
    for name in runs:
        upsert = server.runs[name].upserts[-1]
        config = json.loads(upsert["config"])
        del config["of"], config["fraction"]
        upsert["config"] = json.dumps(config)
    fetched, left_out = fetch_runs(PATH.removeprefix("wandb:"))
    assert left_out == []
    assert {run.header.run.run_id: (run.header.run.of, run.header.run.fraction) for run in fetched} == {
        "search-0001": (None, 1.0),
        "search-0002": (None, 1.0),
        "search-0003": (None, 1.0),
        "baseline-s0": (None, 1.0),
        "confirm-0001-s101": ("search-0001", 1.0),
        "confirm-0001-s101-t75": ("search-0001", 0.75),
        "confirm-tuned-lr-0004-s101": ("tuned-lr-0004", 1.0),
    }
    pd.testing.assert_frame_equal(load(PATH).trials, load("quickstart", store.root.parent).trials)


def edit_config(run: ServerRun, **values: object) -> None:
    """Changes a run's config on the server; None removes a key."""
    config = json.loads(run.upserts[-1]["config"])
    config |= {key: {"value": value} for key, value in values.items()}
    kept = {key: value for key, value in config.items() if key not in values or values[key] is not None}
    run.upserts[-1]["config"] = json.dumps(kept)


ODD: dict[str, tuple[dict[str, object], str]] = {
    "another study's run": ({"study": "other"}, 'is in the group "quickstart" but no run of that study'),
    "no run of hpstudy": ({"study": None}, 'is in the group "quickstart" but no run of that study'),
    "no run id": ({"run_id": None}, "is not as hpstudy sent it ('run_id' is missing)"),
    "a phase that is none": ({"phase": "rearch"}, "is not as hpstudy sent it (phase: "),
    "a text as seed": ({"seed": "x"}, "is not as hpstudy sent it (seed: "),
}


@pytest.mark.parametrize(("values", "said"), ODD.values(), ids=ODD)
def test_an_odd_run_is_left_out_and_named(
    store: RunStore, server: Loopback, values: dict[str, object], said: str
) -> None:
    expected = load("quickstart", store.root.parent).trials
    edit_config(server.runs["q-2"], **values)
    frames = load(PATH)
    assert list(frames.trials["run_id"]) == [run for run in expected["run_id"] if run != "search-0002"]
    (problem,) = frames.problems
    assert problem.startswith(f"W&B run q-2: {said}")
    assert problem.endswith("left out")


@pytest.mark.usefixtures("store")
def test_a_run_with_an_unknown_outcome_is_left_out_and_named(server: Loopback) -> None:
    node = server.node
    server.node = lambda name, run: (
        node(name, run)
        | ({"summaryMetrics": json.dumps(run.summary | {"result/outcome": "vanished"})} if name == "q-2" else {})
    )
    frames = load(PATH)
    assert "search-0002" not in set(frames.trials["run_id"])
    (problem,) = frames.problems
    assert problem.startswith("W&B run q-2: is not as hpstudy sent it (outcome: ")


def test_a_run_of_a_version_without_a_hyperparameter_has_gpt3s(store: RunStore, server: Loopback) -> None:
    edit_config(server.runs["q-1"], batch_ramp_start=None)
    frames = load(PATH)
    assert frames.problems == ()
    pd.testing.assert_frame_equal(frames.trials, load("quickstart", store.root.parent).trials)


@pytest.mark.usefixtures("store")
def test_history_rows_that_are_missing_are_an_error(server: Loopback) -> None:
    assert len(load(PATH).steps) == 50
    del server.runs["q-1"].lines[HISTORY][4]
    with pytest.raises(MachineError, match=r"q-1 \(search-0001\): 20 history rows expected, but got 19"):
        _ = load(PATH).steps


@pytest.mark.usefixtures("store")
def test_a_run_that_exists_twice_is_refused(server: Loopback) -> None:
    server.runs["q-1-again"] = server.runs["q-1"]
    with pytest.raises(UserError, match="search-0001 are there more often"):
        load(PATH)


@pytest.mark.usefixtures("server")
def test_a_study_unknown_to_wandb_is_named() -> None:
    with pytest.raises(UserError, match='e/p has no runs of a study "none"'):
        load("wandb:e/p/none")


@pytest.mark.parametrize("path", ["wandb:", "wandb:e/p", "wandb:e//s"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="wandb:ENTITY/PROJECT/STUDY"):
        load(path)


@pytest.mark.usefixtures("server")
def test_without_a_login_the_message_names_the_remedy_and_nothing_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UserError, match=r"no login for http://127.0.0.1.*wandb login"):
        load(PATH)


def test_a_server_that_refuses_gives_one_machine_error(server: Loopback) -> None:
    server.status = 401
    with pytest.raises(MachineError, match="W&B did not answer"):
        load(PATH)
