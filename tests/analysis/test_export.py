"""The exported files hold what the tables hold."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from hpstudy.analysis.export import export
from hpstudy.analysis.frames import STEPS_COLUMNS, TRIALS_COLUMNS, StudyFrames
from hpstudy.errors import MachineError


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
