"""A finished run's files are what they were when it ended, or what changed is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpstudy.records import Outcome
from hpstudy.tracking.seal import damage
from hpstudy.tracking.store import RunStore
from tests.helpers.samples import header, record, result
from tests.helpers.stores import unsealed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished run of 20 steps."""
    return finished(tmp_path)


def finished(root: Path, outcome: Outcome = Outcome.COMPLETE) -> Path:
    store = RunStore(root)
    writer = store.begin(header())
    for step in range(1, 21):
        writer.append(record(step, evaluated=step == 20))
    writer.finish(result(outcome))
    return store.folder("search-0007")


def test_a_finished_run_is_whole(folder: Path) -> None:
    assert damage(folder) is None


@pytest.mark.parametrize("name", ["result.json", "header.json", "steps.jsonl"])
def test_every_flipped_digit_is_named_with_its_file(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    places = [at for at, byte in enumerate(whole) if chr(byte).isdigit()]
    for at in places[:: max(1, len(places) // 100)]:
        path.write_bytes(whole[:at] + bytes([ord("0") + (whole[at] - ord("0") + 1) % 10]) + whole[at + 1 :])
        found = damage(folder)
        assert found is not None
        assert name in found or name == "result.json"  # which also holds the hashes of the others
    path.write_bytes(whole)
    assert damage(folder) is None


def test_lines_removed_and_added_are_named(folder: Path) -> None:
    path = folder / "steps.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], lines[1:], [*lines, lines[-1]], lines[::-1], []):
        path.write_bytes(b"".join(changed))
        assert damage(folder) == "steps.jsonl changed after the run ended"
    path.unlink()
    assert damage(folder) == "steps.jsonl changed after the run ended"


def test_a_result_that_was_only_laid_out_differently_is_whole(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert damage(folder) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"sha256": 3}', b'{"sha256": {}}'])
def test_a_result_that_cannot_be_read_is_damage(folder: Path, content: bytes) -> None:
    (folder / "result.json").write_bytes(content)
    assert damage(folder) is not None


def test_an_older_run_is_whole_by_its_last_step(folder: Path) -> None:
    unsealed(folder)
    assert damage(folder) is None


def test_an_older_diverged_run_is_whole_without_its_loss(tmp_path: Path) -> None:
    folder = finished(tmp_path, Outcome.DIVERGED)
    unsealed(folder)
    assert damage(folder) is None


@pytest.mark.parametrize(
    ("key", "value", "step"),
    [("val_loss", 3.5, 5.0), ("train_loss", 0.5, 0.54), ("steps", 19, 20), ("tokens", 1, 81920)],
)
def test_an_older_result_that_its_last_step_does_not_give_is_named(
    folder: Path, key: str, value: float, step: float
) -> None:
    unsealed(folder, **{key: value})
    assert damage(folder) == f"{key} is {value} in result.json and {step} in steps.jsonl"
