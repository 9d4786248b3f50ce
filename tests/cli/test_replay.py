"""`hpstudy replay` on a finished study: as it is, with an edited record, and as if recorded on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import hpstudy
from tests.helpers.stores import unsealed


def edit_a_loss(runs: Path, difference: float) -> None:
    path = runs / "tiny" / "search-0001" / "steps.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["train/loss"] += difference
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unsealed(path.parent)


def pretend_another_torch(runs: Path) -> None:
    path = runs / "tiny" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "1.0"}))


def test_a_run_repeats_bitwise(finished) -> None:
    result = hpstudy("replay", finished.path, "search-0001", "--runs", finished.runs)
    assert result.code == 0, result.err
    assert result.out == "search-0001: 20 of 20 steps repeat bitwise\n"


def test_an_edited_record_is_found_on_the_machine_that_wrote_it(finished, copied: Path) -> None:
    edit_a_loss(copied, 1e-9)
    result = hpstudy("replay", finished.path, "search-0001", "--runs", copied)
    assert result.code == 1
    assert "first difference at step 3: train/loss" in result.out
    assert "largest difference of a loss over 20 steps: 1e-09 nats" in result.out
    assert result.err == (
        "search-0001: does not repeat, though nothing that numbers depend on has changed; the record was edited, or "
        "this machine makes errors\n"
    )


@pytest.mark.parametrize(("difference", "code"), [(1e-5, 0), (0.1, 1)])
def test_on_another_machine_a_tolerance_holds_and_changes_are_named(finished, copied, difference: float, code: int):
    edit_a_loss(copied, difference)
    pretend_another_torch(copied)
    result = hpstudy("replay", finished.path, "search-0001", "--runs", copied)
    assert result.code == code
    assert "changed since it was recorded: torch was 1.0, is " in result.out
    assert "tolerance between machines: 0.001" in result.out
    beyond = "search-0001: does not repeat, beyond the tolerance; the record was edited, or this machine makes errors\n"
    assert result.err == (beyond if code else "")


def test_an_unknown_run_or_study_is_a_user_error(finished, tmp_path: Path) -> None:
    result = hpstudy("replay", finished.path, "search-001", "--runs", finished.runs)
    assert (result.code, result.err.count('did you mean "search-0001"')) == (2, 1)
    result = hpstudy("replay", finished.path, "search-0001", "--runs", tmp_path / "nowhere")
    assert result.code == 2
    assert "no study has begun there" in result.err
