"""A long run's Parquet file holds what its lines hold, and counts only as it was when the run ended."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from hpstudy.analysis.frames import load
from hpstudy.errors import UserError
from hpstudy.files import to_json
from hpstudy.hparams import GPT3
from hpstudy.records import Outcome, Run, RunResult, StepRecord, as_row
from hpstudy.tracking import store as stores
from hpstudy.tracking.seal import damage
from hpstudy.tracking.steps_table import SCHEMA, from_lines, from_rows, kept_table, write_table
from hpstudy.tracking.store import RunStore
from tests.analysis.test_frames import RECORDS
from tests.helpers.stores import begun, edit, header_of, keep_run, result_of, step_record, unsealed

LONG = 1000  # steps, in more than 256 KiB
RUN = Run(run_id="search-0000", phase="search", trial=0, seed=0, tokens=8192 * LONG, hparams=GPT3)


def curve(steps: int = LONG, **figures: float) -> list[StepRecord]:
    return [step_record(step, 3 + 2 / step, steps=steps, **figures) for step in range(1, steps + 1)]


def ended(records: Sequence[StepRecord]) -> RunResult:
    return result_of(Outcome.COMPLETE, steps=len(records), val_loss=records[-1].val_loss)


def trained(root: Path, records: Sequence[StepRecord]) -> RunStore:
    """A study with one finished run."""
    store = begun(root, name="long")
    keep_run(store, header_of(RUN), records, ended(records))
    return store


def steps_of(store: RunStore) -> pd.DataFrame:
    return load("long", store.root.parent).steps


def from_json_alone(store: RunStore) -> pd.DataFrame:
    """The steps as a store without Parquet files gives them."""
    copy = RunStore(Path(shutil.copytree(store.root, store.root.parent / "copies" / "long")))
    for table in copy.root.glob("*/steps.parquet"):
        table.unlink()
    found = steps_of(copy)
    shutil.rmtree(copy.root)
    return found


def test_a_long_run_has_a_table_of_a_tenth_of_the_size_and_a_short_one_has_none(tmp_path: Path) -> None:
    folder = trained(tmp_path / "a", curve()).folder(RUN.run_id)
    assert (folder / "steps.parquet").stat().st_size < (folder / "steps.jsonl").stat().st_size / 5
    assert damage(folder) is None
    short = trained(tmp_path / "b", curve(20)).folder(RUN.run_id)
    assert {path.name for path in short.iterdir()} == {"header.json", "result.json", "steps.jsonl"}


@settings(max_examples=40, deadline=None)
@given(RECORDS)
def test_any_records_are_the_same_in_the_table_and_in_the_lines(records: list[StepRecord]) -> None:
    rows = list(map(as_row, records))
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "steps.jsonl").write_text("".join(f"{to_json(row)}\n" for row in rows))
        write_table(folder)
        table = pq.read_table(folder / "steps.parquet")
    assert table.schema.equals(SCHEMA)
    assert list(map(bits, table.to_pylist())) == list(map(bits, from_rows(rows).to_pylist()))


def bits(row: dict[str, float | int | None]) -> dict[str, str]:
    """A row whose values differ if a bit does; every NaN is one."""
    return {name: value.hex() if isinstance(value, float) else repr(value) for name, value in row.items()}


def test_a_diverged_run_keeps_its_infinities(tmp_path: Path) -> None:
    store = trained(tmp_path, [*curve()[:-1], step_record(LONG, math.inf, steps=LONG, grad_norm=math.nan)])
    assert kept_table(store.folder(RUN.run_id)) is not None
    last = steps_of(store).iloc[-1]
    assert (last["train/loss"], math.isnan(last["train/grad_norm"])) == (math.inf, True)
    pd.testing.assert_frame_equal(steps_of(store), from_json_alone(store), check_exact=True)


@pytest.mark.parametrize(
    "harm",
    [
        lambda table: table.unlink(),
        lambda table: table.write_bytes(b""),
        lambda table: table.write_bytes(table.read_bytes()[:-9]),
        lambda table: table.write_bytes(table.read_bytes().replace(b"train/loss", b"train/lass")),
        lambda table: unsealed(table.parent),
    ],
    ids=["removed", "empty", "cut", "changed", "of a version without hashes"],
)
def test_without_a_table_as_it_was_the_lines_are_read(tmp_path: Path, harm) -> None:
    store = trained(tmp_path, curve())
    whole = steps_of(store)
    harm(store.folder(RUN.run_id) / "steps.parquet")
    assert kept_table(store.folder(RUN.run_id)) is None
    pd.testing.assert_frame_equal(steps_of(store), whole, check_exact=True)
    assert load("long", store.root.parent).problems == ()


def test_lines_changed_after_the_end_are_damage_also_beside_a_whole_table(tmp_path: Path) -> None:
    store = trained(tmp_path, curve())
    edit(store.folder(RUN.run_id) / "steps.jsonl", r'"train/loss": 5', '"train/loss": 4')
    frames = load("long", store.root.parent)
    assert (len(frames.steps), list(frames.trials["outcome"])) == (0, ["damaged"])


def test_a_run_trained_again_has_no_table_of_its_earlier_training(tmp_path: Path) -> None:
    store = trained(tmp_path, curve())
    folder = store.folder(RUN.run_id)
    (folder / "result.json").unlink()
    assert kept_table(folder) is None  # it is unfinished, and its lines are read
    writer = store.begin(header_of(RUN), fresh=True)
    for record in curve(20):
        writer.append(record)
    writer.finish(ended(curve(20)))
    assert not (folder / "steps.parquet").exists()
    assert len(steps_of(store)) == 20
    assert damage(folder) is None


def test_a_driver_killed_between_table_and_result_leaves_a_run_that_resumes(tmp_path: Path, monkeypatch) -> None:
    store = begun(tmp_path, name="long")
    writer = store.begin(header_of(RUN))
    for record in curve():
        writer.append(record)

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stores, "sealed", killed)
        with pytest.raises(Killed):
            writer.finish(ended(curve()))
    folder = store.folder(RUN.run_id)
    assert sorted(path.name for path in folder.iterdir()) == ["header.json", "steps.jsonl", "steps.parquet"]
    assert len(steps_of(store)) == LONG
    RunStore(store.root).begin(header_of(RUN)).finish(ended(curve()))
    assert kept_table(folder) is not None


def test_chosen_metrics_come_with_the_runs_columns_alone(tmp_path: Path) -> None:
    store = trained(tmp_path, curve())
    whole = steps_of(store)
    for harm in (False, True):
        if harm:
            (store.folder(RUN.run_id) / "steps.parquet").unlink()
        some = load("long", store.root.parent).read_steps(["train/loss", "step"])
        columns = ["run_id", "phase", "trial", "seed", "train/loss", "step"]
        pd.testing.assert_frame_equal(some, whole[columns], check_exact=True)
    with pytest.raises(UserError, match=r'no metric "train/los"; did you mean "train/loss"'):
        load("long", store.root.parent).read_steps(["train/los"])


def test_lines_that_need_python_are_no_table() -> None:
    assert from_lines(b"") is None
    assert from_lines(b'{"step": 1}') is None  # the last line is incomplete
    assert from_lines(b'{"step": 1, "train/loss": "NaN"}\n') is None
    table = from_lines(b'{"step": 1, "new": 3}\n')
    assert table is not None
    assert (table.schema, table.column("step").to_pylist()) == (SCHEMA, [1])
