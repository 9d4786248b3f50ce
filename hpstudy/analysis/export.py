"""A study's tables as files: `trials` and `steps`, in Parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from hpstudy.analysis.frames import COORDINATE_COLUMNS, STEPS_COLUMNS, TRIALS_COLUMNS, StudyFrames
from hpstudy.errors import MachineError

Format = Literal["parquet", "csv"]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # spreadsheets run such text: CWE-1236


def export(frames: StudyFrames, directory: Path, fmt: Format) -> list[Path]:
    """Writes `trials.FMT` and `steps.FMT` atomically and returns their paths.

    Missing values and NaN are null in Parquet and empty in CSV. Parquet files have each column's description as field
    metadata. In CSV, text that a spreadsheet would run as a formula gets a leading apostrophe.
    Raises MachineError if the folder cannot be written.
    """
    tables = (("trials", frames.trials, TRIALS_COLUMNS | COORDINATE_COLUMNS), ("steps", frames.steps, STEPS_COLUMNS))
    paths = [directory / f"{stem}.{fmt}" for stem, _, _ in tables]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, (_, frame, columns) in zip(paths, tables, strict=True):
            part = path.with_name(path.name + ".part")
            if fmt == "csv":
                pa.csv.write_csv(_arrow(_without_formulas(frame), columns), part)
            else:
                pq.write_table(_arrow(frame, columns), part, compression="zstd")
            part.replace(path)
    except OSError as error:
        raise MachineError(f"{directory}: cannot be written: {error}; put this right and export again") from error
    return paths


def _arrow(frame: pd.DataFrame, columns: dict[str, str]) -> pa.Table:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    described = [field.with_metadata({"description": columns[field.name]}) for field in table.schema]
    return table.cast(pa.schema(described, metadata=table.schema.metadata))


def _without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    texts: list[str] = list(frame.select_dtypes("str"))
    categories: list[str] = list(frame.select_dtypes("category"))
    return frame.assign(
        **{name: frame[name].map(_harmless, na_action="ignore") for name in texts},
        **{name: frame[name].cat.rename_categories(_harmless) for name in categories},
    )


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
