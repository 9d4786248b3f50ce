"""The tables hold what the store holds, and the exported files hold what the tables hold."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.analysis.export import export
from hpstudy.analysis.frames import STEPS_COLUMNS, TRIALS_COLUMNS, StudyFrames, load
from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import GPT3, RULES, derived
from hpstudy.records import GLOSSARY, Outcome, Phase, Run, RunHeader, RunResult, StepRecord, as_row
from hpstudy.tracking.store import RunStore


def header(run_id: str, *, phase: Phase = "search", trial: int | None = None, **hparams: Any) -> RunHeader:
    values = replace(GPT3, **hparams)
    run = Run(run_id=run_id, phase=phase, trial=trial, seed=0, tokens=40_960, hparams=values)
    return RunHeader(
        run=run,
        study="small",
        wandb_id=f"small-{run_id}",
        derived=derived(values),
        num_params=1_000,
        started="2026-11-23T12:00:00+00:00",
    )


def steps(count: int, *, last_loss: float | None = None) -> list[StepRecord]:
    """Awkward floats, an evaluation every fifth step, and a last loss of one's choice."""
    records = [
        StepRecord(
            step=k,
            tokens=4096 * k,
            loss=10.8 / k,
            grad_norm=1 / 3 * k,
            clipped=k % 2 == 1,
            lr=6e-4 * 0.1**k,
            update_to_weight=5e-324 if k == 1 else 1e-3 / k,
            batch_tokens=4096,
            micro_batch=16,
            accumulation=2,
            step_seconds=0.1 + k / 7,
            tok_per_sec=2**53 - 1.0,
            val_loss=4 + 1 / k if k % 5 == 0 else None,
            eval_index=k // 5 if k % 5 == 0 else None,
            eval_seconds=0.3 if k % 5 == 0 else None,
        )
        for k in range(1, count + 1)
    ]
    return records if last_loss is None else [*records[:-1], replace(records[-1], loss=last_loss)]


def result(outcome: Outcome, records: list[StepRecord], **figures: Any) -> RunResult:
    last = records[-1]
    made: dict[str, Any] = {
        "val_loss": 4.1,
        "best_val_loss": 4.05,
        "train_loss": last.loss,
        "tok_per_sec": 1e5,
        "train_seconds": 3.5,
        "clipped_share": 0.5,
    }
    return RunResult(outcome=outcome, steps=last.step, tokens=last.tokens, **(made | figures))


def keep(store: RunStore, head: RunHeader, records: list[StepRecord], end: RunResult | None = None) -> None:
    writer = store.begin(head)
    for record in records:
        writer.append(record)
    if end:
        writer.finish(end)
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A finished run, a diverged one, a failed one without steps, an unfinished one and a baseline."""
    store = RunStore(tmp_path / "runs" / "small")
    store.create()
    store.freeze_study("", {})
    keep(store, header("search-0000", trial=0), steps(10), result(Outcome.COMPLETE, steps(10)))
    bad = steps(7, last_loss=math.nan)
    bad = [*bad[:-1], replace(bad[-1], grad_norm=math.inf)]
    wild = header("search-0001", trial=1, lr=0.1, weight_decay=0.0)
    keep(store, wild, bad, result(Outcome.DIVERGED, bad, val_loss=None, best_val_loss=math.inf))
    nothing = RunResult(
        outcome=Outcome.FAILED,
        steps=0,
        tokens=0,
        val_loss=None,
        best_val_loss=None,
        train_loss=None,
        tok_per_sec=None,
        train_seconds=0.0,
        clipped_share=None,
    )
    keep(store, header("search-0002", trial=2, clip_mode="none"), [], nothing)
    keep(store, header("search-0003", trial=3), steps(4))
    keep(store, header("baseline-s0", phase="baseline"), steps(5), result(Outcome.COMPLETE, steps(5)))
    return store


@pytest.fixture
def frames(store: RunStore) -> StudyFrames:
    return load("small", runs=store.root.parent)


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
def test_any_records_survive_the_way_to_the_table(records: list[StepRecord]) -> None:
    with TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "any")
        store.create()
        store.freeze_study("", {})
        keep(store, header("search-0000", trial=0), records)
        table = load("any", runs=folder).steps
    assert len(table) == len(records)
    for key, metric in GLOSSARY.items():
        for record, read in zip(records, table[metric.name], strict=True):
            value = getattr(record, key)
            if value is None or value != value:  # a table has one sign for what is missing and what is no number
                assert pd.isna(read)
            else:
                assert (read, math.copysign(1, read)) == (value, math.copysign(1, value))


def test_steps_table_says_which_run_each_step_belongs_to(frames: StudyFrames) -> None:
    baseline = frames.steps[frames.steps["phase"] == "baseline"]
    assert list(baseline["run_id"].unique()) == ["baseline-s0"]
    assert baseline["trial"].isna().all()
    assert (frames.steps.loc[frames.steps["run_id"] == "search-0003", "trial"] == 3).all()


def test_steps_do_not_depend_on_what_was_done_to_trials(store: RunStore, frames: StudyFrames) -> None:
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
    RunStore(tmp_path / "runs" / "new").root.mkdir()
    RunStore(tmp_path / "runs" / "new").freeze_study("", {})
    empty = load("new", runs=tmp_path / "runs")
    for made, full in ((empty.trials, frames.trials), (empty.steps, frames.steps)):
        assert len(made) == 0
        assert made.drop(columns="run_id").dtypes.equals(full.drop(columns="run_id").dtypes)


def test_trials_table_tells_outcomes_and_hyperparameters(store: RunStore, frames: StudyFrames) -> None:
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


def test_a_line_cut_short_is_left_out_of_an_unfinished_run_and_an_error_in_a_finished_one(store: RunStore) -> None:
    for run_id in ("search-0003", "search-0000"):
        path = store.root / run_id / "steps.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
        if run_id == "search-0003":
            assert (load("small", store.root.parent).steps["run_id"] == run_id).sum() == 3
    with pytest.raises(MachineError, match=r"search-0000.steps\.jsonl: line 10"):
        _ = load("small", store.root.parent).steps


def test_an_unknown_study_lists_the_known_ones(frames: StudyFrames, store: RunStore, tmp_path: Path) -> None:
    assert frames.name == "small"
    with pytest.raises(UserError, match=r'no study "smal" has begun.*did you mean "small"'):
        load("smal", store.root.parent)
    with pytest.raises(UserError, match="hpstudy run NAME"):
        load("small", tmp_path / "elsewhere")


def test_parquet_holds_the_tables_and_describes_every_column(frames: StudyFrames, tmp_path: Path) -> None:
    paths = export(frames, tmp_path / "export", "parquet")
    assert [path.name for path in paths] == ["trials.parquet", "steps.parquet"]
    described = ((frames.trials, TRIALS_COLUMNS), (frames.steps, STEPS_COLUMNS))
    for path, (frame, columns) in zip(paths, described, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
        schema = pq.read_schema(path)
        assert {field.name: field.metadata[b"description"].decode() for field in schema} == columns


def test_csv_holds_every_number_exactly(frames: StudyFrames, tmp_path: Path) -> None:
    trials, steps = (pd.read_csv(path) for path in export(frames, tmp_path, "csv"))
    for name in ("train/loss", "train/lr", "train/grad_norm", "train/update_to_weight", "val/loss"):
        pd.testing.assert_series_equal(steps[name], frames.steps[name], check_exact=True)
    pd.testing.assert_series_equal(trials["lr"], frames.trials["lr"], check_exact=True)
    assert list(trials["run_id"]) == list(frames.trials["run_id"])
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["steps.csv", "trials.csv"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", "\nx", "=cmd|' /C calc'!A0"])
def test_csv_text_is_never_a_formula(frames: StudyFrames, tmp_path: Path, text: str) -> None:
    trials = frames.trials.assign(wandb_id=text).astype({"wandb_id": "str"})
    trials["run_id"] = trials["run_id"].cat.rename_categories({"search-0000": text})
    frames = StudyFrames(name="small", trials=trials, read_steps=lambda: frames_steps)
    frames_steps = pd.DataFrame({"run_id": trials["run_id"]})
    written = pd.read_csv(export(frames, tmp_path, "csv")[0])
    assert set(written["wandb_id"]) == {f"'{text}"}
    assert (written["run_id"] == f"'{text}").sum() == 1


def test_a_negative_number_in_csv_stays_a_number(frames: StudyFrames, tmp_path: Path) -> None:
    below = frames.steps.assign(**{"train/loss": -frames.steps["train/loss"]})
    frames = StudyFrames(name="small", trials=frames.trials, read_steps=lambda: below)
    written = pd.read_csv(export(frames, tmp_path, "csv")[1])
    pd.testing.assert_series_equal(written["train/loss"], below["train/loss"], check_exact=True)


def test_an_export_into_a_file_is_refused_with_its_name(frames: StudyFrames, tmp_path: Path) -> None:
    (tmp_path / "export").write_text("in the way")
    with pytest.raises(MachineError, match=r"export: cannot be written"):
        export(frames, tmp_path / "export", "csv")
