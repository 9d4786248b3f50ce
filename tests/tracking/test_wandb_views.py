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
from urllib.parse import unquote

import pytest

from hpstudy.records import GLOSSARY, RunResult
from hpstudy.report.style import ACCENT
from hpstudy.study import Study
from tests.helpers.command_line import PROGRAM, hpstudy
from tests.helpers.loopback import Loopback

METRICS = {metric.name for metric in GLOSSARY.values()} | {f"result/{f.name}" for f in fields(RunResult)}
WINNERS = ["w-search-0001", *(f"w-confirm-0001-s{seed}" for seed in (101, 102, 103))]
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


@pytest.fixture(scope="module")
def once() -> list[dict[str, Any]]:
    """Filled by the first test that asks for `spec`."""
    return []


@pytest.fixture
def spec(once: list[dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The JSON of the views of a study with a verdict."""
    if not once:
        result = request.getfixturevalue("workspace")()
        assert result.returncode == 0, result.stderr
        once.append(json.loads(result.stdout))
    return once[0]


def panels_of(view: Any, kind: str) -> list[dict[str, Any]]:
    """The settings of a view's panels of one kind."""
    return [panel["config"] for panel in every(view) if panel.get("viewType") == kind]


def every(found: Any) -> Iterator[dict[str, Any]]:
    """Every object, at any depth."""
    if isinstance(found, dict):
        yield found
    for child in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from every(child)


def filters_of(runset: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Config entry -> (operator, value), all of which a run must meet."""
    found = runset["filters"]["filters"]
    assert all(each.get("connector", "AND") == "AND" and each["key"]["section"] == "config" for each in found)
    return {each["key"]["name"]: (each["op"], each["value"]) for each in found}


FRESH_ONLY = {
    "study": ("=", "tiny"),
    "phase": ("IN", ["baseline", "confirm"]),
    "seed": ("!=", 0),
    "fraction": ("=", 1),
}


def test_the_spec_is_built_without_network(workspace: Workspace, server: ViewServer):
    assert (workspace().returncode, server.requests) == (0, 0)


def test_the_spec_shows_only_metrics_that_runs_have(spec: dict[str, Any]):
    searched = {("config", "lr.value"), ("config", "beta2_halflife_tokens.value")}
    for name, view in spec.items():
        plotted = {metric for metrics in under(view, "metrics") for metric in metrics} | set(under(view, "targetKey"))
        assert {"val/loss", "train/loss", "train/grad_norm", "train/tok_per_sec"} <= plotted
        assert plotted <= METRICS
        axes = {tuple(axis.split(":")) for axis in under(view, "xAxis", "yAxis", "accessor")}
        assert {("tokens",), ("_step",)} <= axes
        assert {axis for axis in axes if axis[0] == "config"} == (set() if name == "fresh" else searched)
        kinds = {"Run History Line Plot"}
        if name != "fresh":
            kinds |= {"Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot"}
            assert ("summary", "result/val_loss") in axes
        assert set(under(view, "viewType")) == kinds


def test_an_axis_is_titled_with_what_it_shows(spec: dict[str, Any]):
    for name in ("search", "report"):
        scatters = {panel["xAxis"]: panel["chartTitle"] for panel in panels_of(spec[name], "Scatter Plot")}
        titles = {
            "config:lr.value": "lr",
            "config:beta2_halflife_tokens.value": "half-life of beta2 (tokens)",
        }
        assert scatters == titles
        (trials,) = panels_of(spec[name], "Parallel Coordinates Plot")
        named = {column["accessor"]: column.get("displayName") for column in trials["columns"]}
        assert named == titles | {"summary:result/val_loss": None}


def test_panels_of_the_search_have_no_runs_on_fresh_seeds(spec: dict[str, Any]):
    (runset,) = (one for found in under(spec["search"], "runSets") for one in found)
    assert filters_of(runset) == {"study": ("=", "tiny"), "phase": ("=", "search")}
    grids = [found for found in every(spec["report"]) if "runSets" in found]
    for grid in grids:
        if any(panel["viewType"] == "Scatter Plot" for panel in grid["panelBankSectionConfig"]["panels"]):
            (runset,) = grid["runSets"]
            assert filters_of(runset) == {"study": ("=", "tiny"), "phase": ("=", "search")}


def test_seeds_of_a_candidate_are_one_line_on_fresh_seeds_black_for_the_baseline_blue_for_the_winner(
    spec: dict[str, Any],
):
    (runset,) = (one for found in under(spec["fresh"], "runSets") for one in found)
    assert filters_of(runset) == FRESH_ONLY
    assert runset["grouping"] == [{"section": "config", "name": "candidate.value"}]
    (colours,) = under(spec["fresh"], "customRunColors")
    assert {unquote(group).rpartition('"value":')[2]: colour for group, colour in colours.items()} == {
        '"baseline"}]': "#000000",
        '"search-0001"}]': ACCENT,
    }
    grid = next(found for found in every(spec["report"]) if "runSets" in found)
    assert filters_of(grid["runSets"][0]) == FRESH_ONLY
    assert {group.rpartition(":")[2]: colour for group, colour in grid["customRunColors"].items()} == {
        "baseline": "#000000",
        "search-0001": ACCENT,
    }


def test_the_baseline_is_black_and_dashed_and_the_winner_blue(spec: dict[str, Any]):
    for view in spec.values():
        for panel in panels_of(view, "Run History Line Plot"):
            (metric,) = panel["metrics"]
            assert panel["overrideMarks"] == {f"{run}:{metric}": "dashed" for run in BASELINES}
            black = {f"{run}:{metric}": "#000000" for run in BASELINES}
            blue = {f"{run}:{metric}": ACCENT for run in WINNERS}
            assert {line: colour["color"] for line, colour in panel["overrideColors"].items()} == black | blue
    (reference,) = under(spec["search"], "baselineRunId")  # deltas are to this run
    assert base64.b64decode(reference).decode().split(":")[2] == BASELINES[0]


def test_noisy_curves_are_smoothed_and_norms_are_on_a_log_axis(spec: dict[str, Any]):
    for view in spec.values():
        curves = {panel["metrics"][0]: panel for panel in panels_of(view, "Run History Line Plot")}
        smooth = {metric for metric, panel in curves.items() if panel.get("smoothingWeight")}
        assert smooth == {"train/loss", "train/grad_norm", "train/tok_per_sec"}
        assert {metric for metric, panel in curves.items() if panel.get("yLogScale")} == {
            "train/grad_norm",
            "train/update_to_weight",
        }


def test_parallel_coordinates_have_the_full_width(spec: dict[str, Any]):
    sections = {found["name"]: found for found in every(spec["search"]) if "flowConfig" in found}
    assert sections["Trials"]["flowConfig"]["columnsPerPage"] == 1
    assert [panel["viewType"] for panel in sections["Trials"]["panels"]] == ["Parallel Coordinates Plot"]
    wide = [found for found in every(spec["report"]) if found.get("viewType") == "Parallel Coordinates Plot"]
    assert [(panel["layout"]["x"], panel["layout"]["w"]) for panel in wide] == [(0, 24)]


def test_no_panels_of_the_report_overlap(spec: dict[str, Any]):
    for grid in under(spec["report"], "panelBankSectionConfig"):
        cells = [
            (x, y)
            for place in (panel["layout"] for panel in grid["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


def test_the_report_opens_with_the_verdict(spec: dict[str, Any]):
    opening = spec["report"]["spec"]["blocks"][1]["children"][0]["text"]
    assert opening.startswith(
        "search-0001 is better than the baseline (GPT-3's values except for warmup_fraction and batch_tokens): val "
        "loss lower by 0.3989 nats (95% interval 0.3961 to 0.4016, 3 paired seeds, p < 0.0001). "
    )
    assert opening.endswith("of 3 seeds, up to 63% of either side's further runs may still do.")


def test_save_sends_the_views_and_prints_their_addresses(workspace: Workspace, server: ViewServer):
    result = workspace("--save")
    assert result.returncode == 0, result.stderr
    report, *shown = server.saved
    assert {(view["entityName"], view["projectName"], view["type"]) for view in shown} == {
        ("me", "hpstudy", "project-view")
    }
    assert [view["displayName"] for view in shown] == ["tiny: search", "tiny: fresh seeds"]
    assert report["type"] == "runs"
    assert len(result.stdout.splitlines()) == 3
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
