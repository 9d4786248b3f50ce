"""Files of text in the forms that public corpora come in are read as documents, or refused by name with what to do."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpstudy.data.corpus import load_corpus
from hpstudy.data.tokenizer import load_tokenizer
from tests.helpers.corpora import problems, same_problems

pytestmark = pytest.mark.usefixtures("cache")

DOCUMENTS = ["First, of «two» lines.\nAnd more.", "", "The last. 🙂"]
TEXT = "<|endoftext|>".join(DOCUMENTS)


def lines(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 7, "text": document}).encode() + b"\n" for document in documents)


def zst(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def text_of(folder: Path) -> str:
    """The text of all tokens of the folder's corpus."""
    corpus = load_corpus(f"text:{folder}", "gpt2", 2)
    return load_tokenizer("gpt2").decode([*corpus.train.read(0, len(corpus.train)), *corpus.val])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(DOCUMENTS)),
        ("a.NDJSON", lines(DOCUMENTS).removesuffix(b"\n")),
        ("a.jsonl.gz", gzip.compress(lines(DOCUMENTS[:1])) + gzip.compress(lines(DOCUMENTS[1:]))),
        ("c4.json.gz", gzip.compress(lines(DOCUMENTS))),
        ("a.jsonl.zstd", zst(lines(DOCUMENTS))),
        ("a.jsonl.bz2", bz2.compress(lines(DOCUMENTS))),
        ("a.jsonl.zst", zst(lines(DOCUMENTS[:1])) + zst(lines(DOCUMENTS[1:]))),
        ("a.jsonl", lines(DOCUMENTS).replace(b"\n", b"\r\n\r\n")),
    ],
)
def test_each_json_line_is_a_document(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert text_of(tmp_path) == TEXT


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zst])
def test_a_packed_text_is_one_document(tmp_path: Path, pack) -> None:
    ending = {gzip.compress: "gz", bz2.compress: "bz2", zst: "zst"}[pack]
    (tmp_path / f"a.txt.{ending}").write_bytes(pack("Straße\n".encode() * 500))
    assert text_of(tmp_path) == "Straße\n" * 500


def test_each_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": DOCUMENTS, "score": [1.0, 2.0, 3.0]}), tmp_path / "a.parquet", row_group_size=2)
    assert text_of(tmp_path) == TEXT


def test_files_of_several_forms_are_documents_in_order_of_path(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(["two", "three"]))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"four"))
    (tmp_path / "a.txt").write_text("one")
    assert text_of(tmp_path) == "<|endoftext|>".join(["one", "two", "three", "four"])


def test_text_that_spells_the_separator_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one <|endoftext|> two", "three"]))
    corpus = load_corpus(f"text:{tmp_path}", "gpt2", 2)
    ids = [*corpus.train.read(0, len(corpus.train)), *corpus.val]
    assert ids.count(50_256) == 1


def test_a_document_that_spells_a_number_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["NaN", "Infinity and more"]))
    assert text_of(tmp_path) == "NaN<|endoftext|>Infinity and more"


def test_a_json_document_with_half_a_surrogate_pair_is_read_with_its_replacement(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a \\ud83d b and more of it"}\n')
    assert text_of(tmp_path) == "a � b and more of it"


def test_the_same_bytes_as_plain_text_are_another_corpus(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "b/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(lines(DOCUMENTS))
    digests = {load_corpus(f"text:{tmp_path / folder}", "bytes", 2).digest for folder in "ab"}
    assert len(digests) == 2
    assert text_of(tmp_path / "b").startswith('{"id": 7')


def test_every_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["x"], "n": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": pa.array(["x", None])}), tmp_path / "2.parquet")
    (tmp_path / "3.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "4.jsonl").write_bytes(lines(["x"]) + b"{'text': 1}\n")
    (tmp_path / "5.jsonl").write_bytes(b'{"content": "x"}\n')
    (tmp_path / "6.jsonl").write_bytes(b'["text"]\n')
    (tmp_path / "7.jsonl").write_bytes(b"")
    (tmp_path / "8.txt.gz").write_bytes(gzip.compress(b"x" * 10_000)[:-20])
    (tmp_path / "8.txt.zst").write_bytes(zst(bytes(range(256)) * 400)[:-20])
    (tmp_path / "9.tar.gz").write_bytes(b"")
    (tmp_path / "9.zip").write_bytes(b"PK")
    (tmp_path / "9a.parquet.gz").write_bytes(b"")
    (tmp_path / "9b.json").write_bytes(lines(["x"]))
    (tmp_path / "9c.jsonl").write_bytes(b"[" * 200_000)
    (tmp_path / "9d.json").write_text('{\n"text": "a file of settings is text"}')
    (tmp_path / "a.txt").write_text("fine")
    found = problems(f"text:{tmp_path}")
    expected = [
        '1.parquet: must have a column "text", but has content, n; rename the column of the documents',
        '2.parquet: column "text" must hold text in every row, but has None; leave it out',
        "3.parquet: is no whole Parquet file (",
        "4.jsonl: line 2 must be a JSON object, but is not (",
        '5.jsonl: line 1 must have text under "text", but has none; rename the key that has it',
        '6.jsonl: line 1 must have text under "text", but has none; rename the key that has it',
        "7.jsonl: must hold text, but is empty; remove the file",
        "8.txt.gz: cannot be unpacked (Truncated compressed stream); fetch or write it again",
        "8.txt.zst: cannot be unpacked (Truncated compressed stream); fetch or write it again",
        "9.tar.gz: is a .tar file, which is not read; unpack it",
        "9.zip: is a .zip file, which is not read; unpack it",
        "9a.parquet.gz: is Parquet packed as .gz, which is not read; unpack it",
        '9b.json: has JSON lines with "text"; name it .jsonl to train on the texts, or .txt to train on it all',
        "9c.jsonl: line 1 must be a JSON object, but is not (",
    ]
    same_problems(found, expected)
    assert problems(f"text:{tmp_path}") == found  # nothing half done is in the cache
