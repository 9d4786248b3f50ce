"""A corpus that was carried here from another machine: its shards in the cache, named by the hash of their ids."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from hpstudy.data.catalog import Source, locate, shard_facts
from hpstudy.data.shards import shard_problem
from hpstudy.errors import HpstudyError
from hpstudy.files import cache_dir, make_durable
from hpstudy.spec import TrainerSpec

STALE_SECONDS = 3600.0  # without a write, after which the part of a file is a remain


def carried_folder() -> Path:
    """The folder of what was carried to this machine."""
    return cache_dir() / "carried"


def content_name(shard: Path, *, raw: bool) -> str:
    """The name of a shard's copy on other machines: equal for equal ids in the same form."""
    return f"{shard_facts(shard, raw)[0]}.{'raw' if raw else 'bin'}"


def find(spec: TrainerSpec, base: Path, wanted: Source) -> tuple[Source, list[Path]]:
    """The files of a corpus on this machine, and those of them that have yet to be carried here.

    `wanted` is the corpus elsewhere, with the `content_name` of each file. What is at the corpus's own path is used if
    it is the same to the last id.
    """
    try:
        here = locate(spec.corpus, spec.tokenizer, base, spec.val)
        if here.digest == wanted.digest:
            return here, []
    except (HpstudyError, OSError):
        pass  # absent, or unreadable for this user
    folder = carried_folder()
    for part in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # another worker's, which has just been renamed
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
    carried = wanted.renamed(lambda name: folder / name)
    return carried, [path for path in dict.fromkeys(carried.files) if not _holds(path, path)]


def keep(part: Path, path: Path) -> None:
    """Makes a part that is complete the file at `path`, at once and durably.

    Raises ValueError if its content is not what the name of `path` says, OSError if it cannot be written.
    """
    if not _holds(part, path):
        part.unlink()
        raise ValueError(f"{path}: was damaged on its way")
    with part.open("rb+") as file:
        make_durable(file)
    part.replace(path)


def _holds(file: Path, path: Path) -> bool:
    """Whether a file has the content that the name of `path` says."""
    raw = path.suffix == ".raw"
    return file.exists() and shard_problem(file, raw=raw) is None and content_name(file, raw=raw) == path.name
