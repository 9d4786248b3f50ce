"""One run between its worker and the sinks: what a new attempt takes over from the records and the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from hpstudy.errors import MachineError
from hpstudy.records import Outcome, Run
from hpstudy.running import active_run
from hpstudy.running.active_run import ActiveRun, header_of, with_smaller_micro_batch
from hpstudy.running.environment import inexact
from hpstudy.running.executors import AwakeClock
from hpstudy.running.interface import Progress
from hpstudy.running.local import LocalExecutor
from hpstudy.running.messages import Saved
from hpstudy.running.replay import replay
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink
from tests.helpers.disk import full_disk
from tests.helpers.running import Watch, curves, interrupt, run_here, trials
from tests.helpers.stores import step_record
from tests.helpers.training import SPEC
from tests.helpers.training import run as a_run


def edit_loss(folder: Path, step: int) -> None:
    """Changes a recorded loss, so that training that step again gives another value."""
    lines = (folder / "steps.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[step - 1])
    lines[step - 1] = json.dumps(row | {"train/loss": row["train/loss"] * (1 + 1e-12)}) + "\n"
    (folder / "steps.jsonl").write_text("".join(lines))


SAVED = Saved(step=1, seconds=1.0, problem="")


class Sinks:
    """A run that is made with these sinks, which note every call."""

    def __init__(self, root: Path) -> None:
        self.store = RunStore(root / "runs" / "tiny")
        self.wandb, self.progress = Mock(spec=WandbSink), Mock(spec=Progress)

    def active(self, run: Run, *, exact: bool = True) -> ActiveRun:
        return ActiveRun(
            header_of(run, self.store, "tiny", 1000, "cpu"),
            self.store,
            self.wandb,
            self.progress,
            clock=AwakeClock(),
            deaths=0,
            furthest=0,
            exact=exact,
            checkpoint_seconds=60.0,
        )


@pytest.fixture
def sinks(tmp_path: Path) -> Sinks:
    return Sinks(tmp_path)


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_constructing_an_active_run_writes_nothing_and_calls_no_sink(sinks: Sinks, tmp_path: Path):
    active = sinks.active(a_run())
    assert list(tmp_path.iterdir()) == []
    assert sinks.wandb.mock_calls == sinks.progress.mock_calls == []
    active.begin()
    assert {path.name for path in files(tmp_path)} == {"header.json", "steps.jsonl"}
    assert [name for name, *_ in sinks.wandb.mock_calls] == ["begin"]
    assert [name for name, *_ in sinks.progress.mock_calls] == ["start"]
    active.abandon()


def test_steps_without_a_checkpoint_are_discarded_if_they_may_not_repeat(sinks: Sinks, tmp_path: Path):
    folder = sinks.store.folder(a_run().run_id)
    folder.mkdir(parents=True)
    (folder / "steps.jsonl").write_text("from before")
    active = sinks.active(a_run(), exact=False)
    assert set(files(tmp_path).values()) == {b"from before"}
    active.begin()
    assert (folder / "steps.jsonl").read_text() == ""
    active.abandon()


def test_a_run_without_a_header_begins_anew_whatever_a_removal_has_left(sinks: Sinks):
    folder = sinks.store.folder(a_run().run_id)
    folder.mkdir(parents=True)
    for name in ("steps.jsonl", "checkpoint.pt"):
        (folder / name).write_text("from before")
    (folder / "recorded.json").write_text(
        '{"bytes": 11, "sha256": "of other steps", "header.json": "of another header"}'
    )
    active = sinks.active(a_run())
    active.begin()
    assert {path.name for path in folder.iterdir()} == {"header.json", "steps.jsonl"}
    assert (folder / "steps.jsonl").read_text() == ""
    active.abandon()


@pytest.mark.parametrize("exact", [True, False])
def test_a_step_trained_again_after_a_checkpoint_may_differ_if_it_need_not_repeat(sinks: Sinks, exact: bool):
    active = sinks.active(a_run())
    active.begin()
    active.record(step_record(1, 4.0, steps=20))
    active.part.write_text("state")
    active.on_saved(SAVED)
    active.abandon()
    again = sinks.active(a_run(), exact=exact)
    again.begin()
    assert len(again.recorded) == 1
    if exact:
        with pytest.raises(MachineError, match="does not repeat its numbers"):
            again.record(step_record(1, 4.01, steps=20))
    else:
        again.record(step_record(1, 4.01, steps=20))
        again.record(step_record(2, 4.0, steps=20))
    again.abandon()
    assert [record.loss for record in sinks.store.view(a_run().run_id).records()] == ([4.0] if exact else [4.0, 4.0])


def test_a_run_must_repeat_unless_it_trained_with_others_or_on_a_gpu_that_need_not(tiny):
    assert inexact(tiny(), {"deterministic": True}) == inexact(tiny(), {}) == []
    assert len(inexact(tiny(more="pack = 2"), {"deterministic": False})) == 2


def test_a_study_that_trained_trials_as_one_resumes_one_at_a_time_and_replays_within_a_tolerance(tiny, tmp_path: Path):
    expected = run_here(tiny(), tmp_path / "expected")
    study = tiny(more="pack = 2")
    interrupt(study, tmp_path, "search-0001", 5)
    folder = tmp_path / study.name / "search-0001"
    (folder / "checkpoint.pt").unlink()  # earlier versions wrote none
    edit_loss(folder, 3)  # trained as one, it differed in the last bits
    store = run_here(study, tmp_path)
    assert curves(store) == curves(expected)
    again = replay(study, store, "search-0001", "cpu", LocalExecutor(tmp_path))
    assert again.good
    assert [change.partition(":")[0] for change in again.changed] == ["[budget] pack"]


def test_a_run_that_other_code_began_is_trained_on_within_rounding_and_replays_within_a_tolerance(tiny, tmp_path: Path):
    """An upgrade that rounds otherwise must not lose the runs that it finds unfinished."""
    expected, study = run_here(tiny(), tmp_path / "expected"), tiny()
    interrupt(study, tmp_path, "search-0001", 5)
    folder = tmp_path / study.name / "search-0001"
    for file in ("checkpoint.pt", "recorded.json"):  # so that it trains again from step 1
        (folder / file).unlink()
    edit_loss(folder, 3)
    with pytest.raises(MachineError, match="does not repeat its numbers"):
        run_here(study, tmp_path)
    path = folder.parent / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_sha256": "0" * 64}))
    store = run_here(study, tmp_path)
    assert curves(store) == curves(expected)
    again = replay(study, store, "search-0001", "cpu", LocalExecutor(tmp_path))
    assert again.good
    assert [change.partition(" was ")[0] for change in again.changed] == ["hpstudy"]


def test_a_checkpoint_is_ordered_once_an_interval_and_takes_a_fiftieth_of_the_time(sinks: Sinks, monkeypatch):
    now = 0.0
    monkeypatch.setattr(active_run.time, "monotonic", lambda: now)
    active = sinks.active(a_run())
    active.begin()
    assert not active.begin_save()
    now = 60.0
    assert (active.begin_save(), active.begin_save(now=True)) == (True, False)  # one at a time
    active.part.write_text("state")
    active.on_saved(replace(SAVED, seconds=3.0))
    assert active.checkpoint is not None
    assert active.checkpoint.read_text() == "state"
    now = 60.0 + 149.0
    assert not active.begin_save()
    now = 60.0 + 150.0
    assert active.begin_save()
    active.abandon()


def test_an_earlier_attempt_that_still_writes_its_checkpoint_does_not_disturb_the_next(sinks: Sinks):
    earlier, later = sinks.active(a_run()), sinks.active(a_run())
    earlier.begin()
    earlier.part.write_text("half")
    earlier.abandon()
    later.begin()
    earlier.part.write_text("late")
    later.part.write_text("whole")
    later.record(step_record(1, 4.0, steps=20))
    later.on_saved(SAVED)
    assert later.checkpoint is not None
    assert later.checkpoint.read_text() == "whole"
    later.finish(Outcome.COMPLETE, "")
    assert not list(earlier.part.parent.glob("checkpoint.*"))


@pytest.mark.parametrize("left", ["checkpoint.pt.part", "checkpoint.pt.01234567.part"])  # the first by earlier versions
def test_what_a_killed_driver_left_of_a_checkpoint_is_removed_when_its_run_begins_again(sinks: Sinks, left: str):
    folder = sinks.store.folder(a_run().run_id)
    sinks.store.begin(header_of(a_run(), sinks.store, "tiny", 1000, "cpu")).close()
    (folder / left).write_text("half")
    active = sinks.active(a_run())
    active.begin()
    assert not list(folder.glob("*.part"))
    active.abandon()


def test_a_run_keeps_the_header_that_it_began_with(sinks: Sinks):
    begun = header_of(a_run(), sinks.store, "tiny", 1000, "cpu")
    sinks.store.begin(begun).close()
    assert header_of(with_smaller_micro_batch(a_run(), SPEC), sinks.store, "tiny", 1000, "cpu") == begun


def test_a_run_that_began_with_other_hyperparameters_is_an_error(sinks: Sinks):
    sinks.store.begin(header_of(a_run(), sinks.store, "tiny", 1000, "cpu")).close()
    other = replace(a_run(), hparams=replace(a_run().hparams, lr=1.0))
    with pytest.raises(MachineError) as error:
        header_of(other, sinks.store, "tiny", 1000, "cpu")
    assert str(error.value) == (
        f"{sinks.store.folder('search-0000')}: began with other values: lr was {a_run().hparams.lr} and is 1.0; remove "
        "the folder to train the run again from step 1"
    )


@pytest.mark.parametrize(("processes", "expected"), [(1, [8, 4, 2, 1]), (4, [8, 2, 1])])
def test_a_smaller_micro_batch_is_the_next_divisor_of_a_ranks_batch(processes: int, expected: list[int]):
    sizes, run = [], a_run()
    while run is not None:
        sizes.append(run.hparams.micro_batch)
        run = with_smaller_micro_batch(run, replace(SPEC, processes=processes))
    assert sizes == expected


def test_a_step_that_trains_to_other_figures_is_an_error_that_names_it(tiny, tmp_path: Path):
    study, folder = tiny(), tmp_path / "tiny" / "search-0000"
    interrupt(study, tmp_path, "search-0000", 9)
    edit_loss(folder, 4)
    (folder / "checkpoint.pt").unlink()
    (folder / "recorded.json").unlink()
    with pytest.raises(MachineError, match=r"search-0000/steps\.jsonl: step 4 trained again gives train/loss"):
        run_here(study, tmp_path)


def test_steps_before_the_checkpoint_are_not_trained_again(tiny, tmp_path: Path):
    study, watch = tiny(replace={"trials = 5": "trials = 1"}), Watch()
    interrupt(study, tmp_path, "search-0000", 9)
    steps = tmp_path / "tiny" / "search-0000" / "steps.jsonl"
    before = steps.read_bytes()
    store = run_here(study, tmp_path, watch=watch)
    assert any(line.startswith("search-0000: resumes after step ") for line in watch.lines)
    assert steps.read_bytes().startswith(before)  # with the times of the first session
    assert len(curves(store)["search-0000"]) == 20
    assert not steps.with_name("recorded.json").exists()


def test_a_step_that_was_changed_before_the_checkpoint_is_refused_and_the_remedy_mends_it(
    tiny, tmp_path: Path, uninterrupted
):
    study = tiny()
    interrupt(study, tmp_path, "search-0000", 9)
    folder = tmp_path / "tiny" / "search-0000"
    edit_loss(folder, 4)
    with pytest.raises(MachineError) as error:
        run_here(study, tmp_path)
    assert str(error.value) == (
        f"{folder}: steps.jsonl or recorded.json changed after its steps were trained; remove {folder} and run the "
        "study again"
    )
    shutil.rmtree(folder)
    store = run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_steps_lost_at_the_end_and_trained_again_are_no_change(tiny, tmp_path: Path, uninterrupted):
    """Their times are others, and the mark of the first session does not fit them."""
    study = tiny()
    interrupt(study, tmp_path, "search-0000", 15)
    steps = tmp_path / "tiny" / "search-0000" / "steps.jsonl"
    steps.write_bytes(b"".join(steps.read_bytes().splitlines(keepends=True)[:6]))
    interrupt(study, tmp_path, "search-0000", 18)
    store = run_here(study, tmp_path)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_header_that_was_changed_before_the_run_ended_is_refused(tiny, tmp_path: Path):
    study = tiny()
    interrupt(study, tmp_path, "search-0000", 9)
    folder = tmp_path / "tiny" / "search-0000"
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | {"started": "2020-01-01T00:00:00+00:00"}))
    with pytest.raises(MachineError, match=r"header\.json or recorded\.json changed after the run began; remove"):
        run_here(study, tmp_path)


def test_a_run_of_a_version_that_did_not_mark_its_steps_resumes(tiny, tmp_path: Path, uninterrupted):
    study, watch = tiny(), Watch()
    interrupt(study, tmp_path, "search-0000", 9)
    (tmp_path / "tiny" / "search-0000" / "recorded.json").unlink()
    store = run_here(study, tmp_path, watch=watch)
    assert any(line.startswith("search-0000: resumes after step ") for line in watch.lines)
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_damaged_or_foreign_checkpoint_is_reported_and_its_run_trained_again(tiny, tmp_path: Path, uninterrupted):
    study, again = tiny(), Watch()
    first, second = (tmp_path / "tiny" / run_id / "checkpoint.pt" for run_id in ("search-0000", "search-0001"))
    interrupt(study, tmp_path, "search-0000", 9)
    foreign = first.read_bytes()
    first.write_bytes(foreign[:-300].replace(foreign[1000:1100], bytes(100)) + foreign[-300:])
    watch = interrupt(study, tmp_path, "search-0001", 9)
    second.write_bytes(foreign)
    store = run_here(study, tmp_path, watch=again)
    assert [line for line in watch.lines if "search-0000" in line and "damaged" in line and "from step 1" in line]
    assert [line for line in again.lines if "search-0001" in line and "belongs to another run" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_checkpoint_ahead_of_damaged_steps_leaves_no_gap(tiny, tmp_path: Path, uninterrupted):
    study, watch = tiny(), Watch()
    interrupt(study, tmp_path, "search-0000", 9)
    steps = tmp_path / "tiny" / "search-0000" / "steps.jsonl"
    steps.write_bytes(b"".join(steps.read_bytes().splitlines(keepends=True)[:5]))
    store = run_here(study, tmp_path, watch=watch)
    assert [line for line in watch.lines if "but 5 steps are recorded); it trains again from step 1" in line]
    assert (trials(study, store), curves(store)) == uninterrupted


def test_a_checkpoint_that_cannot_be_written_is_reported_once_and_training_continues(tiny, tmp_path, uninterrupted):
    study, watch = tiny(), Watch()
    with full_disk(50_000):  # enough for its steps
        store = run_here(study, tmp_path, watch=watch, checkpoint_seconds=0.0)
    lines = [line for line in watch.lines if "no checkpoint could be written" in line]
    assert len(lines) == len({line.split(":")[0] for line in lines}) > 0
    assert (trials(study, store), curves(store)) == uninterrupted


def test_lost_results_and_a_lost_journal_come_back_from_the_steps_alone(tiny, tmp_path: Path):
    study = tiny(
        replace={"trials = 5": "trials = 10", "low = 1e-4, high = 3e-2": "low = 1e-4, high = 1e7"},
        more='pruner = { name = "median", startup = 1, from_fraction = 0.25 }',
    )
    store = run_here(study, tmp_path)
    expected, outcomes = trials(study, store), [view.result.outcome for view in store.runs()]
    assert {Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED} <= set(outcomes)
    (store.root / "optuna.journal").unlink()
    for view in store.runs():
        (view.folder / "result.json").unlink()
        edit_loss(view.folder, 1)  # training any run again would be an error
    again = run_here(study, tmp_path)
    assert [view.result.outcome for view in again.runs()] == outcomes
    assert trials(study, again) == expected
