"""`status`: a line for every study, one study with its next step, and both as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.analysis.drift import drift
from hpstudy.analysis.foreseen import running_forecasts
from hpstudy.analysis.overview import OVERVIEW
from hpstudy.analysis.results import load
from hpstudy.cli.layout import Column, fits
from hpstudy.cli.study_status import Line, _print_workers, layouts
from hpstudy.running.worker_states import Doing, Workers, WorkersFile, WorkerState
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.command_line import Result, at_eighty_columns, hpstudy
from tests.helpers.gallery import GALLERY
from tests.helpers.made_up import train

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
YES = {"format = 1": 'format = 1\nyes = "better"'}
Tiny, Build = Callable[..., Study], Callable[[Study], Any]


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls `hpstudy status` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: hpstudy("status", *args)


def row(result: Result, name: str) -> list[str]:
    (line,) = (line for line in result.out.splitlines() if line.startswith(f"{name} "))
    return line.split()


def test_each_study_has_a_line_with_both_losses_its_answer_and_its_next_command(
    status, tiny: Tiny, confirmed: Build, searched: Build, write_run
) -> None:
    confirmed(tiny("sure", more=CONFIRM, replace=YES | {"trials = 5": "trials = 10"}))
    searched(tiny("unsure", replace={"trials = 5": "trials = 10"}))
    write_run(tiny("begun"), "search-0000", "search", 4.0, trial=0)
    result = status()
    assert (result.code, result.err) == (0, "")
    # 3.6, 3.6111 and 3.6222 against 4, 4.01 and 4.02: standard errors of 0.0064 and 0.0058
    longer = ["more", "trials", "hpstudy", "run", "sure.toml", "--trials", "20"]
    assert row(result, "sure") == ["sure", "yes,", "better", "10", "of", "10", "3.6111", "4.0100", *longer]
    assert row(result, "unsure")[:8] == ["unsure", "not", "confirmed", "10", "of", "10", "3.600", "4.000"]
    run = ["hpstudy", "run", "begun.toml"]
    assert row(result, "begun") == ["begun", "stopped", "1", "of", "5", "-", "4.000", "resume", *run]


def test_a_list_fits_eighty_columns_and_says_the_step_in_words_there() -> None:
    line = Line(
        name="weight-decay", state="nothing better", trials="16 of 16", best="3.7039", baseline="3.7582",
        step="wider range", command="hpstudy run weight-decay-wider", question="Is it?",
    )  # fmt: skip
    chosen = next(layout for layout in layouts([line]) if fits(layout, 80))
    assert [column.heading for column in chosen] == ["study", "state", "trials", "best", "baseline", "next"]
    assert chosen[-1].cells == ["wider range"]
    wide = next(layout for layout in layouts([line]) if fits(layout, 200))
    assert [column.cells for column in wide[-2:]] == [["hpstudy run weight-decay-wider"], ["Is it?"]]


def test_columns_fit_up_to_their_longest_lines_and_the_gaps() -> None:
    columns = [Column(heading="a", cells=["12\n1234"]), Column(heading="head", cells=["1"])]
    assert fits(columns, 4 + 2 + 4)
    assert not fits(columns, 4 + 2 + 4 - 1)


def test_studies_that_have_not_begun_are_listed_with_their_questions(status, tiny_file, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "waiting.toml").write_text(tiny_file().read_text())
    result = status()
    assert (result.code, result.err) == (0, "")
    assert row(result, "waiting") == ["waiting", "Does", "the", "smallest", "study", "there", "is", "run?"]
    assert "`hpstudy run NAME` begins one" in result.out
    assert not (tmp_path / "runs").exists()


def test_a_study_that_cannot_be_read_has_a_line_and_a_warning(status, tiny: Tiny, searched: Build, tmp_path) -> None:
    for name in ("good", "bad"):
        searched(tiny(name))
    (tmp_path / "runs" / "bad" / "search-0003" / "header.json").write_text("no JSON")
    result = status()
    assert result.code == 0
    assert row(result, "bad")[:2] == ["bad", "unreadable"]
    assert row(result, "good")[:2] == ["good", "not"]
    assert "warning: bad: " in result.err
    listed = {study["study"]: study for study in json.loads(status("--json").out)["studies"]}
    assert (listed["bad"]["stage"], listed["good"]["stage"]) == ("unreadable", "done")
    assert "search-0003" in listed["bad"]["problems"][0]


def test_one_study_shows_its_phases_both_losses_its_answer_its_noise_and_its_next_step(
    status, tiny: Tiny, confirmed: Build, tmp_path: Path
) -> None:
    study = tiny("sure", more=CONFIRM, replace={"trials = 5": "trials = 10"})
    confirmed(study)
    result = status("sure")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert ["phase", "runs", "complete", "diverged"] in lines
    assert lines[2:5] == [["search", "10", "9", "1"], ["baseline", "3", "3", "0"], ["confirm", "3", "3", "0"]]
    found = load("sure", tmp_path / "runs")
    for line in (
        "state    done; 10 of 10 trials have ended",
        "best     search-0001 3.6111 ±0.0064 nats, GPT-3 4.0100 ±0.0058 nats (3 fresh seeds)",
        f"answer   {found.verdict().sentence}",
        f"noise    {found.noise}",
        "next     a longer search may find still better values",
        "         hpstudy run sure.toml --trials 20",
    ):
        assert line in result.out.splitlines()


def test_an_unfinished_run_is_named_with_the_command_that_resumes_it_in_its_folder(
    tiny: Tiny, searched: Build, tmp_path: Path
) -> None:
    study = tiny("tiny", replace={"trials = 5": "trials = 10"})
    searched(study)
    (tmp_path / "runs" / "tiny" / "search-0004" / "result.json").unlink()
    result = hpstudy("status", study.path, "--runs", tmp_path / "runs")
    assert "begun    search-0004 has begun and not ended" in result.out
    assert "state    stopped; 9 of 10 trials have ended" in result.out
    assert result.out.splitlines()[-1].split(maxsplit=2)[:2] == ["hpstudy", "run"]
    assert result.out.endswith(f" --runs {tmp_path / 'runs'}\n")


def test_json_of_a_study_is_one_object_with_the_documented_keys(status, tiny: Tiny, confirmed: Build) -> None:
    confirmed(tiny("sure", more=CONFIRM, replace=YES | {"trials = 5": "trials = 10"}))
    result = status("sure", "--json")
    found = json.loads(result.out)
    assert result.out.count("\n") == 1
    assert list(found) == list(OVERVIEW)
    assert (found["stage"], found["reply"], found["answer"]) == ("done", "yes", "better")
    assert found["next"]["command"] == "hpstudy run sure.toml --trials 20"
    assert json.loads(status("--json").out)["studies"][0] == found


@pytest.fixture
def workers(tiny: Tiny, searched: Build, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Says what the workers of a study do while this process runs it."""
    searched(tiny("busy", replace={"trials = 5": "trials = 10"}))
    store = RunStore(tmp_path / "runs" / "busy")
    with store.locked():
        yield lambda states, room="": WorkersFile(store).update(lambda: states, lambda: room)


def worker(number: int, state: Doing, node: str = "", run: str | None = None) -> WorkerState:
    kind = "a GPU, torch 2.13 (0a1b2c)" if state in (Doing.TRAINS, Doing.IDLE) else ""
    return WorkerState(number=number, node=node, kind=kind, state=state, run=run)


def test_a_running_study_shows_its_workers_and_what_those_that_wait_need(status, workers) -> None:
    room = "each needs 1 GPU and 1 CPU; the cluster has a 1 GPU and 8 CPU"
    workers([worker(0, Doing.TRAINS, "a", "search-0003"), worker(1, Doing.WAITS), worker(2, Doing.WAITS)], room)
    lines = status("busy").out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("workers "))
    assert lines[place] == f"workers  2 wait for a place, 1 trains; {room}"
    since = r"\d\d:\d\d"
    for line, pattern in zip(
        lines[place + 2 : place + 5],
        [
            rf" +0 +a +1 +trains +search-0003 +{since} *",
            rf" +1 +- +- +waits for a place +- +{since} *",
            rf" +2 +- +- +waits for a place +- +{since} *",
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line
    assert lines[place + 5] == "kind 1   a GPU, torch 2.13 (0a1b2c)"
    found = json.loads(status("busy", "--json").out)
    assert found["waits"] == room
    assert [(w["number"], w["node"], w["state"], w["run"]) for w in found["workers"]] == [
        (0, "a", "trains", "search-0003"), (1, "", "waits for a place", None), (2, "", "waits for a place", None)
    ]  # fmt: skip


def test_many_workers_are_counted_by_node(status, workers) -> None:
    trains = [worker(number, Doing.TRAINS, "ab"[number % 2], f"search-{number:04}") for number in range(20)]
    workers([*trains, worker(20, Doing.IDLE, "a"), worker(21, Doing.WAITS)], "each needs 1 GPU")
    lines = status("busy").out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("workers "))
    assert lines[place] == "workers  1 waits for a place, 20 train, 1 is idle; each needs 1 GPU"
    assert [line.split()[-3:] for line in lines[place + 2 : place + 4]] == [["10", "0", "1"], ["10", "0", "0"]]


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("node", ["gpu-node-17", "raycluster-hpstudy-gpus-worker-7xk2p.training.svc.cluster.local"])
def test_every_cell_of_the_workers_is_whole_at_eighty_columns(node: str, count: int) -> None:
    kind = "NVIDIA H100 80GB HBM3, torch 2.13.0+cu130 (0a1b2c)"
    states = [
        WorkerState(
            number=number, node=node, kind=kind, state=Doing.TRAINS, run=f"confirm-{100 + number}-baseline",
            since="2026-01-02T03:04:05+00:00",
        )
        for number in range(count)
    ]  # fmt: skip
    lines = at_eighty_columns(_print_workers, Workers(pid=1, workers=tuple(states), room=""))
    text = "\n".join(lines)
    assert f"kind 1   {kind}" in text
    assert text.count(kind) == 1
    assert "…" not in text
    words = text.split()
    if count == 3:
        assert [words.count(word) for word in (node, "trains", "03:04", "confirm-102-baseline")] == [3, 3, 3, 1]
        assert all(f"{number}" in words for number in range(count))
    else:
        assert [words.count(word) for word in (node, "20")] == [words.count("node"), 2]  # 20 train, here and in all


def test_workers_are_listed_by_number(status, workers) -> None:
    workers([worker(number, Doing.TRAINS, "a", f"search-{number:04}") for number in (2, 0, 10, 1)])
    found = json.loads(status("busy", "--json").out)["workers"]
    assert [each["number"] for each in found] == [0, 1, 2, 10]
    lines = status("busy").out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("workers "))
    assert [line.split()[0] for line in lines[place + 2 : place + 6]] == ["0", "1", "2", "10"]


def test_workers_of_a_driver_that_is_gone_are_not_shown(status, workers, tmp_path: Path) -> None:
    workers([worker(0, Doing.TRAINS, "a", "search-0003")])
    file = tmp_path / "runs" / "busy" / "workers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 1}))
    assert json.loads(status("busy", "--json").out)["workers"] is None
    assert "workers" not in status("busy").out


def test_an_error_with_json_leaves_stdout_empty(status) -> None:
    result = status("nonsense", "--json")
    assert (result.code, result.out) == (2, "")
    assert 'no study "nonsense" has begun' in result.err


def test_status_without_any_runs_succeeds_and_writes_no_file(status, tmp_path: Path) -> None:
    assert status().code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_running_trial_of_foresight_has_its_forecast(status, tmp_path: Path) -> None:
    train("late", replace(GALLERY["foresight"], stopped="search-0012"), tmp_path / "runs")
    ((run, forecast),) = running_forecasts(load("late", tmp_path / "runs")).items()
    said = f"forecast {run}: {forecast.loss:.4f} [{forecast.low:.4f}, {forecast.high:.4f}]"
    assert said in status("late").out.splitlines()


def test_a_study_by_speed_has_a_line_on_the_machines_drift(status, tmp_path: Path) -> None:
    train("fast", GALLERY["speed"], tmp_path / "runs")
    found = drift(load("fast", tmp_path / "runs"))
    lines = status("fast").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("drift"))
    assert " ".join(" ".join(lines[at : at + 2]).split()).startswith(f"drift {found}")
