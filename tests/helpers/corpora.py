"""Shards spelled out byte by byte, and the problems of a corpus that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.data.corpus import load_corpus
from hpstudy.errors import UserError


def write_by_hand(
    path: Path, ids: list[int], magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    """A shard as the public corpora have them."""
    header = [magic, version, len(ids) if count is None else count] + [0] * 253
    body = b"".join(i.to_bytes(2, "little") for i in ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(n.to_bytes(4, "little", signed=True) for n in header) + body)
    return path


def problems(name: str, tokenizer: str = "gpt2", val_tokens: int = 4, base: Path = Path()) -> list[str]:
    """Why a corpus is refused."""
    with pytest.raises(UserError) as caught:
        load_corpus(name, tokenizer, val_tokens, base=base)
    return list(caught.value.problems)


def same_problems(found: list[str], expected: list[str]) -> None:
    """Asserts that each problem holds what is expected of it, in order, and that there are no others."""
    assert len(found) == len(expected)
    for line, problem in zip(expected, found, strict=True):
        assert line in problem
