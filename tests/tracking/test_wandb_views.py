"""`hpstudy workspace` builds W&B views from the run store alone, and saves them only with --save and a login."""

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
from tests.helpers.command_line import PROGRAM, hpstudy
from tests.helpers.loopback import Loopback

METRICS = {metric.name for metric in GLOSSARY.values()} | {f"result/{f.name}" for f in fields(RunResult)}
BASELINES = ["w-search-0000", "w-baseline-s101", "w-baseline-s102", "w-baseline-s103"]

Tiny, Build = Callable[..., Study], Callable[[Study], Any]
Workspace = Callable[..., subprocess.CompletedProcess[str]]


class ViewServer(Loopback):
    """A W&B server that keeps the views that it receives, and counts the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.saved: list[dict[str, Any]] = []

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        return super().answer(path, body)

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
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
        return super().graphql(query, variables)


@pytest.fixture
def loopback() -> ViewServer:
    """The kind of the fixture `server`."""
    return ViewServer()


@pytest.fixture
def workspace(tiny: Tiny, confirmed: Build, tmp_path: Path) -> Workspace:
    """Calls `hpstudy workspace tiny ARGS` on a study with a verdict."""
    confirmed(tiny(more="[confirm]\nseeds = [101, 102, 103]\n"))

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, "workspace", "tiny", "--runs", str(tmp_path / "runs"), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return call


def under(found: Any, *keys: str) -> Iterator[Any]:
    """Every value of one of these keys, at any depth."""
    children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    if isinstance(found, dict):
        yield from (found[key] for key in keys if key in found)
    for child in children:
        yield from under(child, *keys)


def test_the_spec_shows_only_metrics_that_runs_have_and_is_built_without_network(
    workspace: Workspace, server: ViewServer
):
    result = workspace()
    assert (result.returncode, server.requests) == (0, 0), result.stderr
    for view in json.loads(result.stdout).values():
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
    (reference,) = under(views["workspace"], "baselineRunId")  # deltas are to this run
    assert base64.b64decode(reference).decode().split(":")[2] == BASELINES[0]
    opening = views["report"]["spec"]["blocks"][1]["children"][0]["text"]
    assert opening.startswith(
        "search-0001 is better than the baseline (GPT-3's values except for warmup_fraction and batch_tokens): val "
        "loss lower by 0.3989 nats (95% interval 0.3961 to 0.4016, 3 paired seeds, p < 0.0001). "
    )
    assert opening.endswith("of 3 seeds, up to 63% of either side's further runs may still do.")


def test_save_sends_both_views_and_prints_their_addresses(workspace: Workspace, server: ViewServer):
    result = workspace("--save")
    assert result.returncode == 0, result.stderr
    report, shown = server.saved
    assert (shown["entityName"], shown["projectName"], shown["type"]) == ("me", "hpstudy", "project-view")
    assert report["type"] == "runs"
    assert len(result.stdout.splitlines()) == 2
    assert all("/me/hpstudy/" in line or "/me/hpstudy?" in line for line in result.stdout.splitlines())


def test_save_without_a_login_is_refused(tiny: Tiny, confirmed: Build, tmp_path: Path):
    confirmed(tiny())
    result = hpstudy("workspace", "tiny", "--save", "--runs", tmp_path / "runs")
    assert (result.code, result.out) == (2, "")
    assert "WANDB_API_KEY" in result.err


def test_a_server_that_refuses_gives_one_message_and_no_traceback(workspace: Workspace, server: ViewServer):
    server.status = 403
    result = workspace("--save")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_without_the_extra_the_message_names_the_command_that_installs_it(
    tiny: Tiny, confirmed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    confirmed(tiny())
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    result = hpstudy("workspace", "tiny", "--runs", tmp_path / "runs")
    assert result.code == 2
    assert "pip install 'hpstudy[wandb-report]'" in result.err
