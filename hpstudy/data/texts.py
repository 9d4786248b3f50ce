"""Files of text -> documents: plain text, JSON lines, Parquet, and each of them compressed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from hpstudy.errors import UserError

KEY = "text"  # the key of a JSON line, or the column of a Parquet file, that holds a document
LINES = frozenset({".jsonl", ".ndjson"})
PARQUET = ".parquet"
PACKED = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".lz4": "lz4",
}
"""The ending of a packed file -> pyarrow's name for it."""
UNREAD = frozenset({".zip", ".tar", ".tgz", ".tbz2", ".txz", ".xz", ".7z", ".rar"})


def documents(name: str, files: Iterable[Path]) -> Iterator[str]:
    """The documents of a corpus's files, in order.

    A plain file is one document; each line of JSON and each row of Parquet is one, under "text". Raises UserError after
    the last file, naming every file that could not be read.
    """
    problems = []
    for file in files:
        try:
            yield from _documents(file)
        except ValueError as error:
            problems.append(f'corpus "{name}": {file}: {error}')
    if problems:
        raise UserError(problems)


def text_sha256(file: Path) -> str:
    """The hash of a file's content and, unless it is plain text, of the way in which it is read."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    form = "".join(_form(file))
    return found if not form else hashlib.sha256(f"{form} {found}".encode()).hexdigest()


def _form(file: Path) -> tuple[str, str]:
    """(how a file is packed, what it holds), each a known ending or ""."""
    packing = file.suffix.lower() if file.suffix.lower() in PACKED else ""
    kind = Path(file.stem if packing else file.name).suffix.lower()
    if packing and kind == ".json":  # public corpora are packed so, and hold lines
        kind = ".jsonl"
    return packing, kind if kind in {*LINES, PARQUET, *UNREAD} else ""


def _documents(file: Path) -> Iterator[str]:
    """Raises ValueError with the rule and the remedy."""
    packing, kind = _form(file)
    if kind in UNREAD:
        raise ValueError(f"is a {kind} file, which is not read; unpack it")
    if packing and kind == PARQUET:
        raise ValueError(f"is Parquet packed as {packing}, which is not read; unpack it")
    try:
        with _opened(file, packing) as content:
            if kind == PARQUET:
                yield from _rows(content)
            elif kind in LINES:
                yield from _lines(content)
            else:
                yield _plain(content.read(), file)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"cannot be unpacked ({error}); fetch or write it again") from error  # pyarrow has no number


def _opened(file: Path, packing: str) -> IO[bytes]:
    if not packing:
        return file.open("rb")
    import pyarrow as pa  # here: plain text needs no part of it

    return io.BufferedReader(pa.CompressedInputStream(file.open("rb"), PACKED[packing]))


def _plain(content: bytes, file: Path) -> str:
    if not content:
        raise ValueError("must hold text, but is empty; remove the file")
    if file.suffix.lower() == ".json" and _is_document(content.partition(b"\n")[0]):
        raise ValueError(
            f'has JSON lines with "{KEY}"; name it .jsonl to train on the texts, or .txt to train on it all'
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"must be UTF-8, but byte 0x{content[error.start]:02x} at offset {error.start:,} is not; convert the file "
            "or leave it out"
        ) from error


def _is_document(line: bytes) -> bool:
    """Whether a line is a JSON object with a text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get(KEY), str)


def _lines(content: IO[bytes]) -> Iterator[str]:
    number = 0
    for number, line in enumerate(content, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number:,} must be a JSON object, but is not ({error}); correct the line"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get(KEY), str):
            raise ValueError(f'line {number:,} must have text under "{KEY}", but has none; rename the key that has it')
        yield row[KEY].encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair is no character
    if not number:
        raise ValueError("must hold text, but is empty; remove the file")


def _rows(content: IO[bytes]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(content)
        if KEY not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise ValueError(f'must have a column "{KEY}", but has {columns}; rename the column of the documents')
        for batch in table.iter_batches(columns=[KEY]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise ValueError(f'column "{KEY}" must hold text in every row, but has {value!r:.40}; leave it out')
                yield value
    except pa.ArrowInvalid as error:
        raise ValueError(f"is no whole Parquet file ({error}); fetch or write it again") from error
