"""Runs that were lost, half copied or changed after they ended: trained again to the same, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Run, StepRecord
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.running import Watch, curves, run_here, trials
from tests.helpers.stores import edit

Damage = Callable[[Path], object]

LOSSES: dict[str, Damage] = {
    "removed": shutil.rmtree,
    "without its result": lambda folder: (folder / "result.json").unlink(),
    "without result and steps": lambda folder: [(folder / name).unlink() for name in ("result.json", "steps.jsonl")],
    "half copied": lambda folder: [(folder / "result.json").unlink(), cut(folder / "steps.jsonl")],
}


def cut(path: Path) -> None:
    """Cuts a file in its middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


EDITS: dict[str, tuple[str, Damage]] = {
    "a digit of the loss": ("result.json", lambda f: edit(f / "result.json", r'"val_loss": (\d)', '"val_loss": 1')),
    "a digit of a step": (
        "steps.jsonl",
        lambda f: edit(f / "steps.jsonl", r'"train/grad_norm": \d', '"train/grad_norm": 7'),
    ),
    "steps cut short": ("steps.jsonl", lambda f: cut(f / "steps.jsonl")),
    "steps removed": ("steps.jsonl", lambda f: (f / "steps.jsonl").unlink()),
    "another seed": ("header.json", lambda f: edit(f / "header.json", r'"seed": \d+', '"seed": 77')),
    "another lr": ("header.json", lambda f: edit(f / "header.json", r'"lr": [0-9.e-]+', '"lr": 0.5')),
}


@pytest.fixture
def copied(confirmed_runs: Path, tmp_path: Path) -> RunStore:
    """A copy of a study with search, tuned-lr opponent, baseline and fresh seeds that ran to its verdict."""
    return RunStore(Path(shutil.copytree(confirmed_runs, tmp_path / "copied")) / "tiny")


def numbers(study: Study, store: RunStore) -> Any:
    """All that a study has found: its trials, curves, results without times, and selections."""
    results = {view.run_id: (view.result.outcome, view.result.val_loss) for view in store.runs() if view.result}
    return trials(study, store), curves(store), results, json.loads((store.root / "confirm.json").read_text())


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("run_id", ["search-0000", "search-0002", "tuned-lr-0001", "baseline-s7", "confirm-{best}-s8"])
def test_a_lost_run_is_trained_again_and_nothing_else_changes(confirmable, copied: RunStore, run_id: str, lose: Damage):
    study = confirmable()
    before = numbers(study, copied)
    journal = (copied.root / "optuna.journal").read_bytes()
    best = before[3][0]["candidates"][0].removeprefix("search-")
    run_id = run_id.format(best=best)
    lose(copied.root / run_id)
    watch = Watch()
    run_here(study, copied.root.parent, watch=watch)
    assert watch.started == [run_id]
    assert numbers(study, copied) == before
    assert (copied.root / "optuna.journal").read_bytes() == journal


def test_runs_lost_all_at_once_are_trained_again_under_their_numbers(confirmable, copied: RunStore):
    study = confirmable()
    before = numbers(study, copied)
    for view in copied.runs():
        shutil.rmtree(view.folder)
    run_here(study, copied.root.parent, workers=2)
    assert numbers(study, copied) == before


def test_a_lost_run_of_a_pruned_search_ends_where_it_ended(tiny, tmp_path: Path):
    study = tiny(
        replace={"trials = 5": "trials = 9"}, more='pruner = { name = "median", startup = 1, from_fraction = 0 }'
    )
    store = run_here(study, tmp_path)
    before = trials(study, store), curves(store)
    pruned = [view.run_id for view in store.runs() if view.result and view.result.outcome == "pruned"]
    assert pruned
    for run_id in pruned:
        shutil.rmtree(store.root / run_id)
    run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == before


def test_a_lost_speed_is_refused_by_name(tiny, tmp_path: Path):
    study = tiny(more='[objective]\nmetric = "train/tok_per_sec"')
    store = run_here(study, tmp_path)
    shutil.rmtree(store.root / "search-0001")
    before = (store.root / "optuna.journal").read_bytes()
    with pytest.raises(MachineError, match=r"the result of search-0001, .* cannot be measured twice\); restore"):
        run_here(study, tmp_path)
    assert (store.root / "optuna.journal").read_bytes() == before
    assert not (store.root / "search-0001").exists()


@pytest.mark.parametrize(("file", "damage"), EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("run_id", ["search-0001", "baseline-s8"])
def test_a_run_changed_after_its_end_is_refused_and_the_remedy_mends_it(
    confirmable, copied: RunStore, run_id: str, file: str, damage: Damage
):
    study, folder = confirmable(), copied.root / run_id
    before = numbers(study, copied)
    damage(folder)
    with pytest.raises(MachineError) as refusal:
        run_here(study, copied.root.parent)
    assert (
        str(refusal.value) == f"{folder}: {file} changed after the run ended; remove {folder} and run the study again"
    )
    shutil.rmtree(folder)
    run_here(study, copied.root.parent)
    assert numbers(study, copied) == before


def test_every_changed_run_is_named_at_once(confirmable, copied: RunStore):
    for run_id in ("search-0001", "baseline-s8"):
        EDITS["another seed"][1](copied.root / run_id)
    with pytest.raises(MachineError) as refusal:
        run_here(confirmable(), copied.root.parent)
    assert [line.split(":")[0] for line in str(refusal.value).splitlines()] == [
        str(copied.root / "search-0001"),
        str(copied.root / "baseline-s8"),
    ]


def test_a_result_without_a_header_is_refused_by_name(confirmable, copied: RunStore):
    folder = copied.root / "search-0001"
    (folder / "header.json").unlink()
    with pytest.raises(MachineError, match=rf"^{folder}: has a result but no header\.json; remove {folder} and run"):
        run_here(confirmable(), copied.root.parent)


def test_a_selection_of_an_unknown_trial_is_refused_by_name(confirmable, copied: RunStore):
    edit(copied.root / "confirm.json", r'"search-\d+"', '"search-0099"')
    with pytest.raises(MachineError, match=r"confirm\.json: .* the selection of search-0099 .* was edited; restore it"):
        run_here(confirmable(), copied.root.parent)
    edit(copied.root / "confirm.json", r', "sha256": "\w+"', "")  # as versions before wrote it
    with pytest.raises(MachineError, match=r"confirm\.json: names search-0099, which this study has not"):
        run_here(confirmable(), copied.root.parent)


def test_a_selection_lost_with_its_candidates_runs_is_not_made_again(confirmable, copied: RunStore):
    """The baseline's runs on fresh seeds tell that there was one, and a verdict counts how many there were."""
    (copied.root / "confirm.json").unlink()
    for folder in copied.root.glob("confirm-*"):
        shutil.rmtree(folder)
    with pytest.raises(MachineError, match="is missing, though runs on fresh seeds have begun"):
        run_here(confirmable(), copied.root.parent)


def test_a_study_whose_values_are_lost_goes_on_only_with_the_file_that_it_began_with(
    confirmable, tiny, copied: RunStore
):
    study = confirmable()
    before = numbers(study, copied)
    environment = (copied.root / "environment.json").read_bytes()
    (copied.root / "study.json").unlink()
    other = tiny(replace={"trials = 5": "trials = 3", "val_tokens = 512": "val_tokens = 1024"})
    for _ in range(2):
        with pytest.raises(UserError, match=r"study\.json: is missing, and .* is not as when the study began"):
            run_here(other, copied.root.parent)
    assert (copied.root / "environment.json").read_bytes() == environment
    assert not (copied.root / "study.json").exists()
    run_here(confirmable(), copied.root.parent)
    assert numbers(study, copied) == before


def test_a_refused_start_removes_nothing_of_a_store_that_lost_its_values(tiny, copied: RunStore):
    """Neither values nor environment are left to say what its numbers depend on, so no other may be recorded."""
    (copied.root / "study.json").unlink()
    (copied.root / "environment.json").unlink()
    with pytest.raises(MachineError, match=r"environment\.json: is missing, so nothing says"):
        run_here(tiny(replace={"trials = 5": "trials = 3"}), copied.root.parent)
    assert list(copied.root.glob("search-*"))


def test_a_copied_run_is_left_alone(confirmable, copied: RunStore):
    study = confirmable()
    before = numbers(study, copied)
    strange = shutil.copytree(copied.root / "search-0001", copied.root / "search-0001-bak")
    watch = Watch()
    run_here(study, copied.root.parent, watch=watch)
    assert (watch.started, numbers(study, copied)) == ([], before)
    assert copied.strange_folders(copied.runs()) == [strange]


@pytest.mark.parametrize(("key", "value"), [("seed", 77), ("tokens", 9), ("fraction", 0.5)])
def test_an_unfinished_run_with_other_values_is_refused_by_name(confirmable, copied: RunStore, key: str, value: Any):
    folder = copied.root / "baseline-s8"
    (folder / "result.json").unlink()
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | {"run": header["run"] | {key: value}}))
    with pytest.raises(
        MachineError, match=rf"baseline-s8: began with other values: {key} was {value} and is .*; remove"
    ):
        run_here(confirmable(), copied.root.parent)


@pytest.mark.parametrize("removed", ["the run in training", "a run that has ended", "the steps of the run in training"])
def test_a_run_removed_while_its_study_runs_is_named_and_trained_again(
    tiny, tmp_path: Path, removed: str, uninterrupted
):
    study, root = tiny(), tmp_path / "tiny"
    lost = root / ("search-0000" if removed == "a run that has ended" else "search-0002")

    def remove(run: Run, record: StepRecord) -> None:
        if (run.run_id, record.step) == ("search-0002", 9):
            (lost / "steps.jsonl").unlink() if "steps" in removed else shutil.rmtree(lost)

    with pytest.raises(MachineError) as refusal:
        run_here(study, tmp_path, watch=Watch(remove))
    if "steps" in removed:
        assert str(refusal.value) == (
            f"{lost / 'steps.jsonl'}: was changed while the run trained; remove {lost} and run the study again"
        )
        shutil.rmtree(lost)
    else:
        assert str(refusal.value) == (
            f"{lost}: was removed while the study ran; run the study again, which trains the run again"
        )
    store = run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted
