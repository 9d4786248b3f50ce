"""A corpus that was carried from another machine is used if it is the same to the last id."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.data.carried import STALE_SECONDS, carried_folder, content_name, find, keep
from hpstudy.data.catalog import Source, locate
from hpstudy.data.corpus import corpus_of
from hpstudy.data.shards import write_shard
from hpstudy.spec import TrainerSpec
from tests.helpers.training import SPEC

pytestmark = pytest.mark.usefixtures("cache")


def on_shards(folder: Path, form: str = "shards") -> TrainerSpec:
    """A spec on a training and a validation shard."""
    for name, start in (("train", 0), ("val", 100)):
        ids = np.arange(start, start + 150, dtype=np.uint16)
        if form == "shards":
            write_shard(folder / f"{name}.bin", ids)
        else:
            folder.mkdir(exist_ok=True)
            ids.tofile(folder / f"{name}.bin")
    return replace(SPEC, corpus=f"{form}:*.bin", tokenizer="bytes", val_tokens=64, context=16)


def elsewhere(spec: TrainerSpec, base: Path) -> tuple[Source, dict[str, Path]]:
    """The corpus as other machines are asked for it, and its files by that name."""
    source = locate(spec.corpus, spec.tokenizer, base)
    files = {content_name(path, raw=source.raw): path for path in source.files}
    return source.renamed(lambda path: Path(content_name(path, raw=source.raw))), files


@pytest.mark.parametrize("form", ["shards", "raw"])
def test_a_corpus_with_another_path_or_other_ids_is_read_from_what_was_carried(tmp_path: Path, form: str):
    spec = on_shards(tmp_path / "driver", form)
    expected = corpus_of(spec, tmp_path / "driver")
    wanted, files = elsewhere(spec, tmp_path / "driver")
    here = tmp_path / "node"
    for other in (False, True):
        if other:
            on_shards(here, form)
            (here / "train.bin").write_bytes((here / "val.bin").read_bytes())
        source, missing = find(spec, here, wanted)
        assert {path.name for path in missing} == (set() if other else set(files))
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(files[path.name].read_bytes())
            keep(part, path)
        corpus = corpus_of(spec, here, source=source)
        assert corpus.digest == expected.digest
        assert corpus.train.read(0, len(corpus.train)).tolist() == list(range(150))
        assert corpus.val.tolist() == expected.val.tolist()


def test_the_same_corpus_at_its_path_is_used_there(tmp_path: Path):
    spec = on_shards(tmp_path / "driver")
    wanted, _ = elsewhere(spec, tmp_path / "driver")
    on_shards(tmp_path / "node")
    source, missing = find(spec, tmp_path / "node", wanted)
    assert (missing, source.files) == ([], [tmp_path / "node" / "train.bin", tmp_path / "node" / "val.bin"])


def test_a_file_that_was_damaged_on_its_way_or_later_is_missing(tmp_path: Path):
    spec = on_shards(tmp_path / "driver")
    wanted, files = elsewhere(spec, tmp_path / "driver")
    carried_folder().mkdir(parents=True)
    name, file = next(iter(files.items()))
    part, path = carried_folder() / "a.part", carried_folder() / name
    damaged = file.read_bytes()[:-1] + b"\1"
    part.write_bytes(damaged)
    with pytest.raises(ValueError, match="was damaged on its way"):
        keep(part, path)
    assert list(carried_folder().iterdir()) == []
    path.write_bytes(damaged)
    assert path in find(spec, tmp_path / "node", wanted)[1]


def test_what_a_killed_driver_left_of_a_file_is_removed_later(tmp_path: Path):
    wanted, _ = elsewhere(spec := on_shards(tmp_path / "driver"), tmp_path / "driver")
    carried_folder().mkdir(parents=True)
    old, new = carried_folder() / "a.part", carried_folder() / "b.part"
    for part in (old, new):
        part.touch()
    os.utime(old, (0, old.stat().st_mtime - STALE_SECONDS - 60))
    find(spec, tmp_path / "node", wanted)
    assert list(carried_folder().iterdir()) == [new]
