"""Shards: files of token ids, checked when they are read, and read together as one long sequence.

The format is that of the public GPT-2 corpora, little-endian: a header of 256 int32 (20240520, version 1, number of
tokens, zeros), then the ids as uint16. No vocabulary here exceeds GPT-2's 50,257 ids, so uint16 is enough. Arrays of
uint16 that numpy saved are read too and, where a corpus says so, raw uint16 without any header.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from hpstudy.errors import UserError
from hpstudy.files import CACHE_REMEDY, note, write_atomic

TokenIds = npt.NDArray[np.uint16]

MAGIC = 20240520
VERSION = 1
LLAMA3_MAGIC = 20240801  # ids as uint32
HEADER_BYTES = 4 * 256
NPY = b"\x93NUMPY"  # how a file of numpy's begins
SHARD_TOKENS = 100_000_000  # 200 MB, as in the public corpora
MANIFEST = "shards.json"  # {file name: sha256}, written after the last shard


def write_shard(path: Path, ids: TokenIds) -> None:
    """Writes token ids as one shard. Raises MachineError if it cannot be written."""
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, len(ids)
    write_atomic(path, header.tobytes(), np.ascontiguousarray(ids, "<u2").data.cast("B"), remedy=CACHE_REMEDY)


def shard_problem(path: Path, *, raw: bool = False) -> str | None:
    """Why a file is not a whole shard, or None if it is. Reads only the header."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), np.uint8)
    size = path.stat().st_size
    is_npy = header.tobytes().startswith(NPY)
    if raw:
        headed = is_npy or header[:4].tobytes() in {number.to_bytes(4, "little") for number in (MAGIC, LLAMA3_MAGIC)}
        return _raw_problem(size, header, headed=headed)
    if is_npy:
        return _npy_problem(path)
    if size <= HEADER_BYTES:
        return f"must hold a header of {HEADER_BYTES:,} bytes and tokens, but has {size:,} bytes; write it again"
    magic, version, count = header.view("<i4")[:3].tolist()
    if magic == LLAMA3_MAGIC:
        return "holds ids of Llama 3, but studies train on GPT-2's; tokenize its text with `hpstudy prepare text:PATH`"
    if magic != MAGIC:
        return (
            f"must begin with the number {MAGIC}, but got {magic}; if it holds uint16 ids without a header, as nanoGPT "
            'writes them, name the corpus "raw:GLOB"; else tokenize the text with `hpstudy prepare text:PATH`'
        )
    if version != VERSION:
        return f"version must be {VERSION}, but got {version}; write it again in the {MAGIC} format"
    if size != (expected := HEADER_BYTES + 2 * count):
        return f"must have {expected:,} bytes for {count:,} tokens, but has {size:,}; fetch or write it again"
    return None


def _raw_problem(size: int, start: npt.NDArray[np.uint8], *, headed: bool) -> str | None:
    if headed:
        return 'has a header, so it is not raw; name the corpus "shards:GLOB"'
    if size % 2 or not size:
        return f"must hold ids of 2 bytes each, but has {size:,} bytes; fetch or write it again"
    ids = start[: len(start) // 2 * 2].view("<u2")
    if len(ids) >= 8 and ids.any() and not ids[1::2].any():
        return "must hold ids of 2 bytes each, but its every other id is 0; write them again as uint16"
    return None


def _npy_problem(path: Path) -> str | None:
    try:
        ids = _npy(path)
    except Exception as error:  # numpy raises SyntaxError and tokenize's own for a damaged header
        return f"cannot be read as an array of ids ({error}); fetch it, or save it as uint16, again"
    if ids.ndim != 1 or ids.dtype != np.dtype("<u2") or not len(ids):
        return (
            f"must hold one row of uint16, but has {ids.dtype} of shape {ids.shape}; save it again, for example with "
            'numpy.save(path, ids.ravel().astype("uint16"))'
        )
    return None


def _npy(path: Path) -> npt.NDArray[np.generic]:
    """An array that numpy saved, mapped into memory if its file system can."""
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
        _note_loading(path, error)
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file))


def _note_loading(path: Path, error: OSError) -> None:
    note(
        "mmap",
        f"{path.parent}: files here cannot be mapped into memory ({error.strerror}); shards are loaded instead",
    )


def read_shard(path: Path, *, raw: bool = False) -> TokenIds:
    """The token ids of a whole shard, mapped into memory, or loaded if its file system cannot map files."""
    with path.open("rb") as file:
        if not raw and file.read(len(NPY)) == NPY:
            return _npy(path).view(np.uint16)
    offset = 0 if raw else HEADER_BYTES
    try:
        return np.asarray(np.memmap(path, "<u2", mode="r", offset=offset))  # a plain array is quicker to slice
    except OSError as error:
        _note_loading(path, error)
        return np.fromfile(path, "<u2", offset=offset)


def content_sha256(path: Path, *, raw: bool = False) -> str:
    """The sha256 of a shard's token ids."""
    return hashlib.sha256(read_shard(path, raw=raw).data).hexdigest()


def write_shards(folder: Path, pieces: Iterable[TokenIds], shard_tokens: int = SHARD_TOKENS) -> list[Path]:
    """Writes the concatenated pieces as shards of `shard_tokens` ids, the last one shorter, then the manifest."""
    paths: list[Path] = []
    for ids in _cut(pieces, shard_tokens):
        paths.append(folder / f"{len(paths):06d}.bin")
        write_shard(paths[-1], ids)
    manifest = {path.name: content_sha256(path) for path in paths}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1), remedy=CACHE_REMEDY)
    return paths


def sealed_shards(folder: Path) -> list[Path] | None:
    """The shards that `write_shards` wrote, or None if any byte is missing or has changed since."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_bytes())
        paths = {folder / name: sha256 for name, sha256 in manifest.items()}
        intact = all(shard_problem(path) is None and content_sha256(path) == sha256 for path, sha256 in paths.items())
    except (OSError, ValueError, AttributeError):  # not finished, or the manifest is damaged
        return None
    return list(paths) if intact else None


def _cut(pieces: Iterable[TokenIds], size: int) -> Iterator[TokenIds]:
    """The concatenated pieces in arrays of `size` ids, the last one shorter. One buffer serves them all."""
    shard = np.empty(size, np.uint16)
    filled = 0
    for piece in pieces:
        done = 0
        while done < len(piece):
            taken = piece[done : done + size - filled]
            shard[filled : filled + len(taken)] = taken
            filled, done = filled + len(taken), done + len(taken)
            if filled == size:
                yield shard
                filled = 0
    if filled:
        yield shard[:filled]


class TokenSequence:
    """Shards read as one long sequence, without loading them."""

    def __init__(self, shards: Sequence[TokenIds]) -> None:
        self._shards = shards
        self._starts = [0, *accumulate(len(shard) for shard in shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, count: int) -> TokenIds:
        """The ids from `start` to `start + count - 1`, which must exist. A view if one shard holds them all."""
        shard = bisect_right(self._starts, start) - 1
        offset = start - self._starts[shard]
        ids = self._shards[shard][offset : offset + count]
        if len(ids) == count:
            return ids
        return np.concatenate([ids, self.read(start + len(ids), count - len(ids))])

    def rows(self, starts: npt.NDArray[np.int64], count: int) -> TokenIds:
        """`read` from each of `starts`, [len(starts), count], gathered at once from each shard."""
        rows = np.empty((len(starts), count), np.uint16)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        for number in set(shards.tolist()):
            offsets = starts - self._starts[number]
            inside = (shards == number) & (offsets + count <= len(self._shards[number]))
            if inside.any():
                rows[inside] = sliding_window_view(self._shards[number], count)[offsets[inside]]
            for place in np.flatnonzero((shards == number) & ~inside):  # it ends in another shard
                rows[place] = self.read(int(starts[place]), count)
        return rows

    def head(self, count: int) -> TokenSequence:
        """The first `count` ids."""
        spans = zip(self._shards, self._starts[:-1], strict=True)
        return TokenSequence([shard[: count - start] for shard, start in spans if start < count])


def open_shards(paths: Iterable[Path], *, raw: bool = False) -> TokenSequence:
    """Shards as one sequence, in the given order. Raises UserError naming every file that is not a whole shard."""
    paths = list(paths)
    problems = [f"{path}: {problem}" for path in paths if (problem := shard_problem(path, raw=raw))]
    if problems:
        raise UserError(problems)
    return TokenSequence([read_shard(path, raw=raw) for path in paths])
