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
from tests.helpers.corpora import problems, same_problems, write_by_hand

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
        "2.bin: holds ids of Llama 3, but studies train on GPT-2's",
        "3.bin: version must be 1, but got 2",
        "4.bin: must have 1,032 bytes for 4 tokens, but has 1,030",
        "5.bin: must hold a header of 1,024 bytes and tokens, but has 1,024",
        "6.bin: must hold a header of 1,024 bytes and tokens, but has 5",
    ]
    assert len(found) == len(expected)
    assert all(line in problem for line, problem in zip(expected, found, strict=True))


def test_arrays_that_numpy_saved_are_shards(tmp_path: Path) -> None:
    for name, ids in {"edufineweb_val_000000": range(7, 30), "edufineweb_train_000001": range(50_200, 50_257)}.items():
        np.save(tmp_path / f"{name}.npy", np.array(ids, np.uint16))
    write_by_hand(tmp_path / "edufineweb_train_000002.bin", [1, 2, 3])
    corpus = load_corpus("shards:*.[bn]*", "gpt2", 10, base=tmp_path)
    assert corpus.train.read(0, len(corpus.train)).tolist() == [*range(50_200, 50_257), 1, 2, 3]
    assert corpus.val.tolist() == list(range(7, 18))


def test_ids_without_a_header_are_read_where_the_corpus_says_so(tmp_path: Path) -> None:
    for name, ids in {"train.bin": range(100), "val.bin": range(500, 540)}.items():
        np.array(ids, "<u2").tofile(tmp_path / name)
    corpus = load_corpus("raw:*.bin", "gpt2", 10, base=tmp_path)
    assert corpus.train.read(0, len(corpus.train)).tolist() == list(range(100))
    assert corpus.val.tolist() == list(range(500, 511))
    (problem, _) = problems("shards:*.bin", base=tmp_path)
    assert 'name the corpus "raw:GLOB"' in problem or "must hold a header" in problem


def test_what_is_no_row_of_gpt2_ids_is_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.arange(40, dtype=np.int64))
    np.save(tmp_path / "2.npy", np.zeros((4, 10), np.uint16))
    np.save(tmp_path / "3.npy", np.array([{"a": 1}], object))
    (tmp_path / "4.npy").write_bytes((tmp_path / "1.npy").read_bytes()[:-5])
    np.save(tmp_path / "5.npy", np.zeros(0, np.uint16))
    (tmp_path / "5a.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr':xxxxxxx")
    np.save(tmp_path / "6.npy", np.arange(40, dtype=">u2"))
    write_by_hand(tmp_path / "7.bin", [1, 2, 3], magic=20240801, version=7)
    np.full(2000, 7, "<u2").tofile(tmp_path / "8.bin")
    found = problems("shards:*.[bn]*", base=tmp_path)
    expected = [
        "1.npy: must hold one row of uint16, but has int64 of shape (40,); save it again",
        "2.npy: must hold one row of uint16, but has uint16 of shape (4, 10); save it again",
        "3.npy: cannot be read as an array of ids (",
        "4.npy: cannot be read as an array of ids (",
        "5.npy: ",
        "5a.npy: cannot be read as an array of ids (",
        "6.npy: must hold one row of uint16, but has >u2 of shape (40,); save it again",
        "7.bin: holds ids of Llama 3, but studies train on GPT-2's; tokenize its text with `hpstudy prepare text:PATH`",
        "8.bin: must begin with the number 20240520, but got 458759; if it holds uint16 ids without a header, as "
        'nanoGPT writes them, name the corpus "raw:GLOB"',
    ]
    same_problems(found, expected)


def test_raw_ids_that_have_a_header_or_half_an_id_are_refused(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "1.bin", [1, 2, 3])
    np.save(tmp_path / "2.npy", np.arange(40, dtype=np.uint16))
    (tmp_path / "3.bin").write_bytes(b"abc")
    (tmp_path / "4.bin").write_bytes(b"")
    np.arange(1, 100, dtype="<u4").tofile(tmp_path / "5.bin")
    np.arange(1, 100, dtype="<i8").tofile(tmp_path / "6.bin")
    found = problems("raw:*", base=tmp_path)
    expected = [
        '1.bin: has a header, so it is not raw; name the corpus "shards:GLOB"',
        '2.npy: has a header, so it is not raw; name the corpus "shards:GLOB"',
        "3.bin: must hold ids of 2 bytes each, but has 3 bytes",
        "4.bin: must hold ids of 2 bytes each, but has 0 bytes",
        "5.bin: must hold ids of 2 bytes each, but its every other id is 0; write them again as uint16",
        "6.bin: must hold ids of 2 bytes each, but its every other id is 0; write them again as uint16",
    ]
    same_problems(found, expected)


def test_the_largest_raw_id_is_measured_apart_from_a_shards(tmp_path: Path) -> None:
    """The facts that the cache remembers of a file belong to the way in which it is read."""
    np.full(600, 50_000, "<u2").tofile(tmp_path / "a.bin")
    (problem,) = problems("raw:a.bin", tokenizer="bytes", base=tmp_path)
    assert "ids must be below the 256" in problem
    assert "go up to 50,000" in problem
