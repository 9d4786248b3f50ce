"""A run's steps as a table: from its lines of JSON, or from a Parquet file with the same values.

The lines are what counts. The Parquet file is written once, when a run of many steps ends, and result.json holds its
hash (seal.py). Without it, or if it has changed, the lines are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from hpstudy.files import from_json, write_atomic
from hpstudy.records import GLOSSARY, StepRecord
from hpstudy.tracking.seal import STEPS, TABLE, sealed_table

STEP_HINTS = {m.name: get_type_hints(StepRecord)[key] for key, m in GLOSSARY.items()}
"""Metric -> the type of its values."""

_TYPES = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
SCHEMA = pa.schema(
    [
        (name, next(_TYPES[kind] for kind in (get_args(hint) or (hint,)) if kind in _TYPES))
        for name, hint in STEP_HINTS.items()
    ]
)
"""A column per metric."""

LINES = b"steps_sha256"  # key of the file's metadata: the hash of the lines that it was made from
_READ = pj.ReadOptions(use_threads=False, block_size=1 << 24)  # one thread a file, many files at once


def columns_of(names: Sequence[str] | None) -> pa.Schema:
    """The schema of the metrics `names`; of all for None."""
    return SCHEMA if names is None else pa.schema([SCHEMA.field(name) for name in dict.fromkeys(names)])


def from_lines(lines: bytes, schema: pa.Schema = SCHEMA) -> pa.Table | None:
    """The steps in lines of JSON.

    None if there are no lines, if the last one is incomplete, or if a number is not finite, which JSON has as a string.
    """
    if not lines.endswith(b"\n"):
        return None
    parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        return pj.read_json(pa.BufferReader(lines), _READ, parse)
    except pa.ArrowInvalid:
        return None


def from_rows(rows: Iterable[dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    """The steps from rows {metric: value}."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def kept_table(folder: Path, schema: pa.Schema = SCHEMA) -> pa.Table | None:
    """The steps of a finished run from its Parquet file; None if there is none that can be relied on."""
    if (sealed := sealed_table(folder)) is None:
        return None
    content, of_lines = sealed
    try:
        table = pq.read_table(pa.BufferReader(content), columns=schema.names, use_threads=False)
    except pa.ArrowException:  # another version's, with other columns or another compression
        return None
    of_these_lines = (table.schema.metadata or {}).get(LINES) == of_lines.encode()
    return table if of_these_lines and table.schema.equals(schema) else None


def write_table(folder: Path) -> None:
    """Writes the Parquet file of a run whose steps are complete. Floats are split by bytes, which halves the file."""
    lines = (folder / STEPS).read_bytes()
    table = from_lines(lines)
    if table is None:
        table = from_rows(map(from_json, lines.splitlines()))
    table = table.replace_schema_metadata({LINES: hashlib.sha256(lines).hexdigest()})
    sink = pa.BufferOutputStream()
    floats = [column.name for column in SCHEMA if column.type == pa.float64()]
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, use_byte_stream_split=floats)
    write_atomic(folder / TABLE, memoryview(sink.getvalue()))
