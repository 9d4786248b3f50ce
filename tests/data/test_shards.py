"""Shards are cut, sealed and checked, and read back as one sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.data.corpus import load_corpus, prepare
from hpstudy.data.shards import open_shards, sealed_shards, write_shards
from tests.helpers.corpora import problems, write_by_hand

pytestmark = pytest.mark.usefixtures("cache")


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(st.lists(st.integers(0, 65_535), max_size=12), max_size=8), size=st.integers(1, 9))
def test_any_pieces_cut_into_any_shards_read_back_as_one_sequence(pieces, size, tmp_path_factory):
    paths = write_shards(tmp_path_factory.mktemp("cut"), [np.array(piece, np.uint16) for piece in pieces], size)
    shards = [np.fromfile(path, "<u2")[512:] for path in paths]
    ids = [i for piece in pieces for i in piece]
    assert [len(shard) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    assert [i for shard in shards for i in shard] == ids
    sequence = open_shards(paths)
    assert len(sequence) == len(ids)
    assert not ids or sequence.read(0, len(ids)).tolist() == ids


@given(cuts=st.lists(st.integers(0, 40), max_size=4).map(sorted), count=st.integers(0, 40))
def test_the_head_of_a_sequence_is_its_first_ids_however_the_shards_are_cut(cuts, count, tmp_path_factory):
    parts = np.split(np.arange(40, dtype=np.uint16), cuts)
    folder = tmp_path_factory.mktemp("head")
    written = [write_by_hand(folder / f"{n}.bin", part.tolist()) for n, part in enumerate(parts) if len(part)]
    head = open_shards(written).head(count)
    assert len(head) == count
    assert not count or head.read(0, count).tolist() == list(range(count))


def flip_a_byte(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda shard: shard.write_bytes(shard.read_bytes()[:-10]),
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.unlink(),
        lambda shard: (shard.parent / "shards.json").unlink(),
        lambda shard: (shard.parent / "shards.json").write_text("{"),
        lambda shard: (shard.parent / "shards.json").write_text('{"000000.bin": 7}'),
        lambda shard: (shard.parent / "shards.json").write_text("{}"),
    ],
    ids=["flipped", "truncated", "emptied", "missing", "unsealed", "half a manifest", "wrong hash", "empty manifest"],
)
def test_a_damaged_cache_is_rebuilt_and_never_used(tmp_path: Path, damage: Callable[[Path], object]):
    (tmp_path / "a.txt").write_text("some text " * 500)
    (shard,) = prepare("text:a.txt", "bytes", base=tmp_path)
    healthy = shard.read_bytes()
    assert sealed_shards(shard.parent) == [shard]
    damage(shard)
    assert not sealed_shards(shard.parent)
    corpus = load_corpus("text:a.txt", "bytes", 10, base=tmp_path)
    assert shard.read_bytes() == healthy
    assert bytes(corpus.train.read(0, 10).tolist()) == b"some text "


def test_every_bad_shard_is_named_with_its_rule(tmp_path: Path):
    write_by_hand(tmp_path / "1.bin", [1, 2, 3])
    write_by_hand(tmp_path / "2.bin", [1, 2, 3], magic=20240801)
    write_by_hand(tmp_path / "3.bin", [1, 2, 3], version=2)
    write_by_hand(tmp_path / "4.bin", [1, 2, 3], count=4)
    write_by_hand(tmp_path / "5.bin", [])
    (tmp_path / "6.bin").write_bytes(b"short")
    found = problems("shards:*.bin", base=tmp_path)
    expected = [
        "2.bin: must begin with the number 20240520, but got 20240801",
        "3.bin: version must be 1, but got 2",
        "4.bin: must have 1,032 bytes for 4 tokens, but has 1,030",
        "5.bin: must hold a header of 1,024 bytes and tokens, but has 1,024",
        "6.bin: must hold a header of 1,024 bytes and tokens, but has 5",
    ]
    assert len(found) == len(expected)
    assert all(line in problem for line, problem in zip(expected, found, strict=True))
