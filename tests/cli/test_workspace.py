"""`workspace` builds what W&B will show from the run store alone, and saves it only when asked and online."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hpstudy.records import GLOSSARY, RunResult
from hpstudy.study import Study
from tests.tracking.loopback import Loopback

KEY = "0123456789" * 4
METRICS = {metric.name for metric in GLOSSARY.values()} | {f"result/{f.name}" for f in fields(RunResult)}
BASELINES = ["w-search-0000", "w-baseline-s101", "w-baseline-s102", "w-baseline-s103"]

Tiny, Build = Callable[..., Study], Callable[[Study], Any]
Workspace = Callable[..., subprocess.CompletedProcess[str]]


class Server(Loopback):
    """A W&B server that takes views, and counts how often it was asked anything."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.saved: list[dict[str, Any]] = []

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return super().answer(path, body)

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            self.saved.append(variables)
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            sent = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
            view = {"id": f"view{len(self.saved)}", "project": project, "createdAt": None, "updatedAt": None} | sent
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "query Viewer" in query or "query GetDefaultEntity" in query:
            viewer = {"id": "u", "entity": "me", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        if "query GetProjects" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"pageInfo": page, "edges": []}}}
        if "upsertModel" in query:
            project = {"id": "p", "name": "hpstudy", "entityName": "me"}
            return {"data": {"result": {"project": project, "model": project, "inserted": True}}}
        return super()._graphql(query, variables)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Where wandb would go, with a key: only the command's own restraint keeps it from going."""
    with Server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield found


@pytest.fixture
def workspace(tiny: Tiny, confirmed: Build, tmp_path: Path, program: str) -> Workspace:
    """Calls `hpstudy workspace tiny ARGS` on a study with a verdict."""
    confirmed(tiny(more="[confirm]\nseeds = [101, 102, 103]\n"))

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        command = [program, "workspace", "tiny", "--runs", str(tmp_path / "runs"), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return call


def under(found: Any, *keys: str) -> Iterator[Any]:
    """Every value that stands under one of these keys, at any depth."""
    children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    if isinstance(found, dict):
        yield from (found[key] for key in keys if key in found)
    for child in children:
        yield from under(child, *keys)


def test_the_spec_shows_metrics_that_runs_have_and_is_built_without_network(workspace: Workspace, server: Server):
    told = workspace()
    assert (told.returncode, server.asked) == (0, 0), told.stderr
    for view in json.loads(told.stdout).values():
        plotted = {name for names in under(view, "metrics") for name in names} | set(under(view, "targetKey"))
        assert {"val/loss", "train/loss", "train/grad_norm", "train/tok_per_sec", "result/val_loss"} <= plotted
        assert plotted <= METRICS
        axes = {tuple(axis.split(":")) for axis in under(view, "xAxis", "yAxis", "accessor")}
        assert {("tokens",), ("_step",), ("summary", "result/val_loss")} <= axes
        searched = {("config", "lr.value"), ("config", "beta2_halflife_tokens.value")}
        assert {axis for axis in axes if axis[0] == "config"} == searched
        kinds = {"Run History Line Plot", "Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot"}
        assert set(under(view, "viewType")) == kinds


def test_the_baseline_is_black_and_dashed_and_the_report_opens_with_the_verdict(workspace: Workspace):
    views = json.loads(workspace().stdout)
    for view in views.values():
        for panel in under(view, "config"):
            if "metrics" in panel:
                (metric,) = panel["metrics"]
                assert panel["overrideMarks"] == {f"{run}:{metric}": "dashed" for run in BASELINES}
                assert {colour["color"] for colour in panel["overrideColors"].values()} == {"#000000"}
    (reference,) = under(views["workspace"], "baselineRunId")  # what deltas are taken to
    assert base64.b64decode(reference).decode().split(":")[2] == BASELINES[0]
    opening = views["report"]["spec"]["blocks"][1]["children"][0]["text"]
    assert opening.startswith("search-0001 is better than the baseline (GPT-3's values but for batch_tokens): val loss")


def test_saving_sends_both_views_and_prints_where_they_are(workspace: Workspace, server: Server):
    told = workspace("--save")
    assert told.returncode == 0, told.stderr
    report, shown = server.saved
    assert (shown["entityName"], shown["projectName"], shown["type"]) == ("me", "hpstudy", "project-view")
    assert report["type"] == "runs"
    assert len(told.stdout.splitlines()) == 2
    assert all("/me/hpstudy/" in line or "/me/hpstudy?" in line for line in told.stdout.splitlines())


def test_saving_without_a_login_is_refused(hpstudy: Callable[..., Any], tiny: Tiny, confirmed: Build, tmp_path: Path):
    confirmed(tiny())
    told = hpstudy("workspace", "tiny", "--save", "--runs", tmp_path / "runs")
    assert (told.code, told.out) == (2, "")
    assert "WANDB_API_KEY" in told.err


def test_a_server_that_refuses_is_told_in_one_message(workspace: Workspace, server: Server):
    server.status = 403
    told = workspace("--save")
    assert told.returncode == 1
    assert "Traceback" not in told.stderr


def test_without_the_extra_the_command_to_install_it_is_named(
    hpstudy: Callable[..., Any], tiny: Tiny, confirmed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    confirmed(tiny())
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    told = hpstudy("workspace", "tiny", "--runs", tmp_path / "runs")
    assert told.code == 2
    assert "pip install 'hpstudy[wandb-report]'" in told.err
