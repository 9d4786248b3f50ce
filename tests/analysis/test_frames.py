"""The tables hold what the store holds."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args, get_type_hints

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.analysis.frames import STEPS_COLUMNS, TRIALS_COLUMNS, StudyFrames, load
from hpstudy.errors import UserError
from hpstudy.hparams import GPT3, RULES
from hpstudy.records import GLOSSARY, Run, RunResult, StepRecord, as_row
from hpstudy.tracking.store import RunStore
from tests.helpers.stores import begun, header_of, keep_run


def test_steps_table_holds_every_recorded_value_bit_for_bit(store: RunStore, frames: StudyFrames) -> None:
    expected = [(view.run_id, as_row(record)) for view in store.runs() for record in view.records()]
    assert len(frames.steps) == len(expected) == 10 + 7 + 0 + 4 + 5
    for (run_id, row), (_, read) in zip(expected, frames.steps.iterrows(), strict=True):
        assert read["run_id"] == run_id
        for metric in GLOSSARY.values():
            value = row.get(metric.name)
            if value is None or math.isnan(value):
                assert pd.isna(read[metric.name])
            else:
                assert read[metric.name] == value


ANY = {int: st.integers(1, 2**63 - 1), bool: st.booleans(), float: st.floats(), type(None): st.none()}
RECORDS = st.lists(
    st.builds(
        StepRecord,
        **{
            key: st.one_of(*(ANY[kind] for kind in get_args(hint) or (hint,)))
            for key, hint in get_type_hints(StepRecord).items()
        },
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_any_records_reach_the_table_unchanged(records: list[StepRecord]) -> None:
    with TemporaryDirectory() as folder:
        store = begun(Path(folder), name="any")
        run = Run(run_id="search-0000", phase="search", trial=0, seed=0, tokens=40_960, hparams=GPT3)
        keep_run(store, header_of(run), records)
        table = load("any", runs=store.root.parent).steps
    assert len(table) == len(records)
    for key, metric in GLOSSARY.items():
        for record, read in zip(records, table[metric.name], strict=True):
            value = getattr(record, key)
            if value is None or value != value:  # a table does not tell NaN from a missing value
                assert pd.isna(read)
            else:
                assert (read, math.copysign(1, read)) == (value, math.copysign(1, value))


def test_steps_table_says_which_run_each_step_belongs_to(frames: StudyFrames) -> None:
    baseline = frames.steps[frames.steps["phase"] == "baseline"]
    assert list(baseline["run_id"].unique()) == ["baseline-s0"]
    assert baseline["trial"].isna().all()
    assert (frames.steps.loc[frames.steps["run_id"] == "search-0003", "trial"] == 3).all()


def test_changes_to_trials_do_not_reach_steps(store: RunStore, frames: StudyFrames) -> None:
    frames.trials.loc[0, "run_id"] = "search-0003"
    frames.trials["seed"] = 99
    pd.testing.assert_frame_equal(frames.steps, load("small", store.root.parent).steps)


def test_tables_have_the_documented_columns_and_types(frames: StudyFrames) -> None:
    assert list(frames.trials.columns) == list(TRIALS_COLUMNS)
    assert list(frames.steps.columns) == list(STEPS_COLUMNS)
    assert set(RULES) <= set(TRIALS_COLUMNS)
    assert {f.name for f in fields(RunResult)} - {"message"} <= set(TRIALS_COLUMNS)
    types = frames.trials.dtypes.astype("str").to_dict() | frames.steps.dtypes.astype("str").to_dict()
    assert {types[name] for name in ("run_id", "phase", "outcome", "clip_mode")} == {"category"}
    assert {types[name] for name in ("trial", "steps", "tokens", "val/index")} <= {"Int64", "int64"}
    assert types["train/clipped"] == "bool"
    assert types["train/loss"] == types["val/loss"] == types["lr"] == types["val_loss"] == "float64"
    assert types["started"] == "datetime64[us, UTC]"


def test_a_study_without_runs_gives_empty_tables_of_the_same_types(tmp_path: Path, frames: StudyFrames) -> None:
    begun(tmp_path, name="new")
    empty = load("new", runs=tmp_path / "runs")
    for made, full in ((empty.trials, frames.trials), (empty.steps, frames.steps)):
        assert len(made) == 0
        assert made.drop(columns="run_id").dtypes.equals(full.drop(columns="run_id").dtypes)


def test_trials_table_holds_outcomes_and_hyperparameters(store: RunStore, frames: StudyFrames) -> None:
    trials = frames.trials.set_index("run_id")
    assert list(trials.index) == [view.run_id for view in store.runs()]
    assert trials.loc["search-0001", "outcome"] == "diverged"
    assert math.isinf(trials.loc["search-0001", "decay_timescale_steps"])
    assert math.isinf(trials.loc["search-0001", "best_val_loss"])
    assert pd.isna(trials.loc["search-0001", "val_loss"])
    assert trials.loc["search-0002", "clip_mode"] == "none"
    assert trials.loc["search-0002", "steps"] == 0
    assert trials.loc["search-0003", ["outcome", "steps", "tokens", "val_loss"]].isna().all()
    for view in store.runs():
        for key, value in asdict(view.header.run.hparams).items():
            assert trials.loc[view.run_id, key] == value


def test_a_line_cut_short_is_left_out_of_an_unfinished_run(store: RunStore) -> None:
    path = store.root / "search-0003" / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert (load("small", store.root.parent).steps["run_id"] == "search-0003").sum() == 3


def test_a_run_changed_after_its_end_has_no_figures_and_no_steps_and_is_named(store: RunStore) -> None:
    folder = store.root / "search-0000"
    path = folder / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    frames = load("small", store.root.parent)
    row = frames.trials.set_index("run_id").loc["search-0000"]
    assert row["outcome"] == "damaged"
    assert row[["steps", "tokens", "val_loss", "train_loss", "tok_per_sec"]].isna().all()
    assert (frames.steps["run_id"] == "search-0000").sum() == 0
    assert frames.problems == (
        f"{folder}: steps.jsonl changed after the run ended; remove {folder} and run the study again",
    )


def test_a_folder_that_is_not_the_run_in_its_header_is_left_out_and_named(store: RunStore) -> None:
    before = load("small", store.root.parent).trials
    copy = shutil.copytree(store.root / "search-0000", store.root / "search-0000-bak")
    frames = load("small", store.root.parent)
    assert frames.trials.equals(before)
    assert frames.problems == (f"{copy}: is not the run that its header names; left alone",)


def test_an_unknown_study_lists_the_known_ones(frames: StudyFrames, store: RunStore, tmp_path: Path) -> None:
    assert frames.name == "small"
    with pytest.raises(UserError, match=r'no study "smal" has begun.*did you mean "small"'):
        load("smal", store.root.parent)
    with pytest.raises(UserError, match="hpstudy run NAME"):
        load("small", tmp_path / "elsewhere")
