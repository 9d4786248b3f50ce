"""`corpora` and `prepare`: results on stdout, exit code 0."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.command_line import hpstudy


def test_corpora_lists_what_a_study_may_name() -> None:
    result = hpstudy("corpora")
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    assert ["asv", "yes", "1,009,473"] in [row[:3] for row in rows]
    assert {row[0] for row in rows[1:]} == {"asv", "text:PATH", "shards:GLOB", "raw:GLOB", "fineweb-edu"}


def test_prepare_prints_the_paths_of_the_shards_it_wrote(cache_folder: Path, tmp_path: Path) -> None:
    result = hpstudy("prepare", "asv", "--tokenizer", "gpt2:256")
    assert result.code == 0
    paths = [Path(line) for line in result.out.splitlines()]
    assert paths
    assert all(path.is_file() and path.is_relative_to(cache_folder) for path in paths)
    text = tmp_path / "text.txt"
    text.write_text("to be")
    (shard,) = hpstudy("prepare", f"text:{text}", "--tokenizer", "bytes").out.splitlines()
    assert Path(shard).read_bytes()[1024:] == b"\0".join(bytes([letter]) for letter in b"to be") + b"\0"
