"""A store that was changed by hand: what does not agree is named and left out, whatever command reads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from hpstudy.cli.loading import loaded
from tests.helpers.command_line import hpstudy
from tests.helpers.stores import SEEDS, ends, results_of, stored, unsealed


def edit(path: Path, **values: object) -> None:
    """Changes values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remedy(folder: Path, file: str) -> str:
    return f"{folder}: {file} changed after the run ended; remove {folder} and run the study again"


@pytest.mark.parametrize("args", [("status", "tiny"), ("report", "tiny"), ("export", "tiny"), ("results", "tiny")])
def test_a_command_that_reads_a_changed_run_names_it(copied: Path, args: tuple[str, ...]) -> None:
    folder = copied / "tiny" / "search-0001"
    edit(folder / "result.json", val_loss=1.0)
    result = hpstudy(*args, "--runs", copied)
    assert result.code == 0
    assert result.err.splitlines()[0] == f"warning: {remedy(folder, 'result.json')}"


def test_a_changed_loss_is_not_the_best_of_the_search(copied: Path) -> None:
    before = hpstudy("status", "tiny", "--runs", copied).out
    (best,) = re.findall(r"^best     (search-\d+) ", before, re.MULTILINE)
    other = next(f.name for f in sorted((copied / "tiny").glob("search-*")) if f.name != best)
    edit(copied / "tiny" / other / "result.json", val_loss=0.5)
    assert f"best     {best} " in hpstudy("status", "tiny", "--runs", copied).out


def test_the_report_shows_what_was_changed(copied: Path) -> None:
    folder = copied / "tiny" / "search-0001"
    edit(folder / "result.json", val_loss=1.0)
    assert hpstudy("report", "tiny", "--runs", copied).code == 0
    assert "result.json changed after the run ended" in (copied / "tiny" / "report" / "index.html").read_text()
    assert "result.json changed after the run ended" in (copied / "tiny" / "report" / "report.md").read_text()


def test_a_verdict_leaves_out_a_changed_run_and_says_so(tiny, tmp_path: Path) -> None:
    study = tiny(more=f"[confirm]\nseeds = {list(SEEDS)}\n")
    losses = [loss - 0.3 for loss in (3.215, 3.219, 3.209, 3.230, 3.206)]
    frames = stored(tmp_path, ends({"search-0001": losses}))
    before = results_of(study, frames, tmp_path).verdict()
    edit(tmp_path / "runs" / "tiny" / "confirm-0001-s103" / "result.json", val_loss=9.9)
    after = loaded("tiny", tmp_path / "runs").verdict()
    assert (before.contrasts[0].n, after.contrasts[0].n) == (5, 4)
    assert after.contrasts[0].difference == pytest.approx(before.contrasts[0].difference, abs=0.01)
    assert "Left out: confirm-0001-s103 (damaged)." in after.sentence


def test_sync_refuses_a_changed_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    folder = copied / "tiny" / "search-0001"
    edit(folder / "result.json", val_loss=1.0)
    assert hpstudy("sync", "tiny", "--runs", copied) == (1, "", f"{remedy(folder, 'result.json')}\n")


def test_replay_compares_the_result_too(finished, copied: Path) -> None:
    folder = copied / "tiny" / "search-0001"
    edit(folder / "result.json", val_loss=1.0)
    result = hpstudy("replay", finished.path, "search-0001", "--runs", copied)
    assert (result.code, result.err) == (1, f"{remedy(folder, 'result.json')}\n")


def test_replay_compares_the_result_of_a_run_without_hashes_with_its_steps(finished, copied: Path) -> None:
    folder = copied / "tiny" / "search-0001"
    kept = json.loads((folder / "result.json").read_text())
    unsealed(folder, best_val_loss=1.0)
    result = hpstudy("replay", finished.path, "search-0001", "--runs", copied)
    given = f"best_val_loss is 1.0 where its steps give {kept['best_val_loss']}"
    assert (result.code, result.err) == (1, f"{folder}: {given}\n")


@pytest.mark.parametrize("command", ["status", "results"])
def test_a_study_that_cannot_be_read_is_one_line(copied: Path, command: str) -> None:
    shutil.copytree(copied / "tiny", copied / "broken")
    (copied / "broken" / "search-0001" / "header.json").write_text("{")
    result = hpstudy(command, "--runs", copied)
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith(f"warning: broken: {copied / 'broken' / 'search-0001' / 'header.json'}: must be a file that")
    assert "tiny" in result.out


def test_a_renamed_study_is_read_as_before(copied: Path) -> None:
    before = hpstudy("status", "tiny", "--runs", copied).out
    (copied / "tiny").rename(copied / "tiny-of-monday")
    for args in (("report", "tiny-of-monday"), ("export", "tiny-of-monday"), ("results", "tiny-of-monday")):
        assert (args, hpstudy(*args, "--runs", copied).code) == (args, 0)
    after = hpstudy("status", "tiny-of-monday", "--runs", copied).out
    known, _, following = after.replace("tiny-of-monday", "tiny").partition("next ")
    assert known == before.partition("next ")[0]
    assert f"hpstudy run {copied}/tiny/tiny.toml" in following


def test_a_copied_run_is_named_and_left_alone(copied: Path) -> None:
    before = hpstudy("status", "tiny", "--runs", copied)
    copy = shutil.copytree(copied / "tiny" / "search-0001", copied / "tiny" / "search-0001-bak")
    after = hpstudy("status", "tiny", "--runs", copied)
    assert after.out == before.out
    assert after.err == f"warning: {copy}: is not the run that its header names; left alone\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("search-0001/wandb.json", '{"mode": "online", "url": 5}'),
        ("search-0001/wandb.json", '{"mode": [], "url": null}'),
        ("environment.json", '{"accepted": 5, "packages": []}'),
    ],
)
def test_values_of_a_wrong_type_are_no_traceback(copied: Path, name: str, content: str) -> None:
    (copied / "tiny" / name).write_text(content)
    for command in ("status", "report"):
        result = hpstudy(command, "tiny", "--runs", str(copied))
        assert result.code == 0, result.err
