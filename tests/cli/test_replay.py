"""`hpstudy replay` on a finished study: the same, edited, and as if recorded elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def runs(finished, tmp_path: Path) -> Path:
    """The finished study's runs, to be changed."""
    shutil.copytree(finished.runs, tmp_path / "runs")
    return tmp_path / "runs"


def edit(runs: Path, difference: float) -> None:
    path = runs / "tiny" / "search-0001" / "steps.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["train/loss"] += difference
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def move(runs: Path) -> None:
    path = runs / "tiny" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "1.0"}))


def test_a_run_goes_again_bitwise(hpstudy: Callable, finished):
    told = hpstudy("replay", finished.path, "search-0001", "--runs", finished.runs)
    assert told.code in (0, None), told.err
    assert told.out == "search-0001: 20 of 20 steps bitwise as recorded\n"


def test_an_edited_record_is_found_on_the_machine_that_wrote_it(hpstudy: Callable, finished, runs: Path):
    edit(runs, 1e-9)
    told = hpstudy("replay", finished.path, "search-0001", "--runs", runs)
    assert told.code == 1
    assert "first at step 3: train/loss" in told.out
    assert "largest difference of a loss over 20 steps: 1e-09 nats" in told.out
    assert "does not repeat" in told.err


@pytest.mark.parametrize(("difference", "code"), [(1e-5, 0), (0.1, 1)])
def test_elsewhere_a_tolerance_holds_and_what_differs_is_named(hpstudy, finished, runs, difference: float, code: int):
    edit(runs, difference)
    move(runs)
    told = hpstudy("replay", finished.path, "search-0001", "--runs", runs)
    assert (told.code or 0) == code
    assert "not as when it was recorded: torch was 1.0, is " in told.out
    assert "tolerance between machines: 0.001" in told.out


def test_a_run_or_study_that_is_not_there_is_the_users_error(hpstudy: Callable, finished, tmp_path: Path):
    told = hpstudy("replay", finished.path, "search-001", "--runs", finished.runs)
    assert (told.code, told.err.count('did you mean "search-0001"')) == (2, 1)
    told = hpstudy("replay", finished.path, "search-0001", "--runs", tmp_path / "nowhere")
    assert told.code == 2
    assert "no study has begun there" in told.err
