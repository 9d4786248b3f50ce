"""What a message tells the user to do, done: the study then ends with the answer that it had."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.errors import HpstudyError
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from tests.helpers.running import Watch, curves, run_here, trials
from tests.helpers.stores import edit


def cut(path: Path) -> None:
    """Cuts a line out of a file's middle."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[3][:9] + b"\n", *lines[4:]]))


def move_unfinished(path: Path) -> None:
    """Makes environment.json that of another machine, while a run is left to train."""
    edit(path, '"threads": 1', '"threads": 7')
    (path.parent / "baseline-s8" / "result.json").unlink()


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a damaged journal": ("optuna.journal", cut, "must be an event of the study"),
    "a journal that disagrees": (
        "optuna.journal",
        lambda path: edit(path, r'"values": ?\[(\d)\.', '"values": [9.'),
        "must agree with its run in the run store",
    ),
    "a lost selection": ("confirm.json", Path.unlink, "is missing, though runs on fresh seeds have begun"),
    "a selection of no trial": (
        "confirm.json",
        lambda path: edit(path, r'"search-\d+"', '"search-0099"'),
        "was edited; restore it from a copy",
    ),
    "a damaged selection": ("confirm.json", lambda path: path.write_text("{"), "it is damaged"),
    "a lost environment": ("environment.json", Path.unlink, "is missing, so nothing says"),
    "a damaged environment": ("environment.json", lambda path: path.write_text("[]"), "it is damaged"),
    "another environment": (
        "environment.json",
        move_unfinished,
        "began in another environment: threads was 7, is 1",
    ),
    "edited values": (
        "study.json",
        lambda path: edit(path, r'"trainer.seed": \d+', '"trainer.seed": 99'),
        "was edited after the",
    ),
    "damaged values": ("study.json", lambda path: path.write_text("7"), "it is damaged"),
}
AGAIN_ELSEWHERE = "start again with another --runs folder"
ACCEPT = "--accept-environment"
MOVE_AWAY = "move it away and run the same command again|move the journal away and run the same command again"
RESTORE = "restore|put back what was edited|resume it where it began"


@pytest.fixture
def copied(confirmed_runs: Path, tmp_path: Path) -> RunStore:
    """A copy of a study that ran to its verdict."""
    return RunStore(Path(shutil.copytree(confirmed_runs, tmp_path / "copied")) / "tiny")


def answer(study: Study, store: RunStore) -> Any:
    """All that a study has found: its trials, curves, losses and selections."""
    losses = {view.run_id: view.result.val_loss for view in store.runs() if view.result}
    return trials(study, store), curves(store), losses, json.loads((store.root / "confirm.json").read_text())


def refusal(study: Study, runs: Path) -> str:
    with pytest.raises(HpstudyError) as caught:
        run_here(study, runs)
    assert caught.value.exit_code in (1, 2)
    return str(caught.value)


@pytest.mark.parametrize(("name", "damage", "said"), FAULTS.values(), ids=FAULTS)
def test_every_way_on_that_a_refusal_names_leads_to_the_same_answer(
    confirmable: Callable[..., Study], confirmed_runs: Path, copied: RunStore, tmp_path: Path, name, damage, said
) -> None:
    study, runs, path = confirmable(), copied.root.parent, copied.root / name
    before = answer(study, copied)
    damage(path)
    message = refusal(study, runs)
    assert said in message
    assert refusal(study, runs) == message  # a refused study is as it was
    offered = 0
    if re.search(ACCEPT, message):
        other = Path(shutil.copytree(runs, tmp_path / "accepted"))
        assert answer(study, run_here(study, other, accept_environment=True)) == before
        offered += 1
    if re.search(MOVE_AWAY, message):
        other = RunStore(Path(shutil.copytree(runs, tmp_path / "moved")) / "tiny")
        (other.root / name).rename(tmp_path / "away")
        watch = Watch()
        assert answer(study, run_here(study, other.root.parent, watch=watch)) == before
        assert watch.started == []  # every trial gets the result of its run
        offered += 1
    if AGAIN_ELSEWHERE in message:
        assert answer(study, run_here(study, tmp_path / "elsewhere")) == before
        offered += 1
    if re.search(RESTORE, message):
        shutil.copy2(confirmed_runs / "tiny" / name, path)
        assert answer(study, run_here(study, runs)) == before
        offered += 1
    assert offered, message


def test_the_runs_that_a_verdict_leaves_out_are_trained_again_by_the_command_it_names(
    confirmable: Callable[..., Study], copied: RunStore
) -> None:
    study = confirmable()
    before = answer(study, copied)
    folder = copied.root / "search-0001"
    (folder / "header.json").unlink()
    message = refusal(study, copied.root.parent)
    assert message.endswith(f"remove {folder} and run the study again")
    shutil.rmtree(folder)
    assert answer(study, run_here(study, copied.root.parent)) == before


@pytest.mark.parametrize(("key", "value"), [("seed", 77), ("tokens", 9)])
def test_an_unfinished_run_that_began_with_other_values_is_trained_again_once_removed(
    confirmable: Callable[..., Study], copied: RunStore, key: str, value: Any
) -> None:
    study, folder = confirmable(), copied.root / "baseline-s8"
    before = answer(study, copied)
    (folder / "result.json").unlink()
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | {"run": header["run"] | {key: value}}))
    assert "remove the folder to train the run again from step 1" in refusal(study, copied.root.parent)
    shutil.rmtree(folder)
    assert answer(study, run_here(study, copied.root.parent)) == before


def test_a_lost_speed_is_measured_by_a_study_that_starts_again(tiny: Callable[..., Study], tmp_path: Path) -> None:
    """What it finds may differ, since speeds do; the lost folder, restored, gives the same."""
    study = tiny(replace={"trials = 5": "trials = 3"}, more='[objective]\nmetric = "train/tok_per_sec"')
    store = run_here(study, tmp_path / "runs")
    before = trials(study, store)
    kept = shutil.move(store.root / "search-0001", tmp_path / "kept")
    assert "restore the folder, or start again with another --runs folder" in refusal(study, tmp_path / "runs")
    shutil.move(kept, store.root / "search-0001")
    assert trials(study, run_here(study, tmp_path / "runs")) == before
    assert len(trials(study, run_here(study, tmp_path / "elsewhere"))) == 3


def test_a_study_with_another_space_begins_under_another_name(tiny_file: Callable[..., Path], copied: RunStore) -> None:
    changed = tiny_file(replace={"trials = 5": "trials = 1", "high = 3e-2": "high = 2e-2"})
    message = refusal(load_study(str(changed)), copied.root.parent)
    assert "copy the file under another name" in message
    renamed = changed.rename(changed.with_name("other.toml"))
    store = run_here(load_study(str(renamed)), copied.root.parent)
    assert store.root.name == "other"
    assert copied.runs()
