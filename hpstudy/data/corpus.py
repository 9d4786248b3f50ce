"""A corpus by name -> training and validation tokens, and the windows of every step.

Training tokens are one long sequence over all shards. Window i holds the ids i*T .. (i+1)*T: T inputs and, shifted by
one, T targets, so that each token is a target once an epoch. A corpus validates on its validation shards, or on its
tail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpstudy.data.catalog import Source, download_fineweb, fineweb_shards, locate
from hpstudy.data.shards import TokenIds, TokenSequence, open_shards
from hpstudy.errors import UserError
from hpstudy.spec import TrainerSpec, vocab_size

Windows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Tokens to train on and tokens to validate on, with no target in both."""

    name: str
    tokenizer: str
    vocab_size: int  # without padding
    train: TokenSequence
    val: TokenIds  # val_tokens + 1 ids, so that val_tokens of them are targets
    confirm_val: TokenIds  # as many after them, for runs on fresh seeds; the same if there is one slice
    digest: str  # sha256 of the whole content, and the tokenizer

    @property
    def num_train_tokens(self) -> int:
        """Tokens of one epoch."""
        return len(self.train)

    def num_windows(self, context: int) -> int:
        """Training windows of one epoch. Tokens after the last whole window are not used."""
        return (len(self.train) - 1) // context


def load_corpus(
    name: str,
    tokenizer: str,
    val_tokens: int,
    *,
    slices: int = 1,
    base: Path = Path(),
    val: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """The corpus of that name. Tokenizes it into the cache on first use, and calls `say` before that.

    Relative paths of text: and shards: start at `base`; `val` states which shards validate, see `locate`. Raises
    UserError if the name, the tokenizer or a file of the corpus is wrong, or if the corpus cannot spare `val_tokens`
    tokens for each of the `slices` on which it validates (1 or 2).
    """
    return _opened(locate(name, tokenizer, base, val, say), name, tokenizer, val_tokens, slices)


def _opened(source: Source, name: str, tokenizer: str, val_tokens: int, slices: int) -> Corpus:
    train = open_shards(source.train, raw=source.raw)
    held = slices * val_tokens + 1
    if source.val:
        pool, start = open_shards(source.val, raw=source.raw), 0
    else:
        pool, start = train, len(train) - held
        train = pool.head(start)
    if len(pool) < held or not train:
        raise UserError(
            f'corpus "{name}": must hold {"twice " if slices > 1 else ""}val_tokens and one more to validate on and '
            f"some to train on, but holds {len(pool):,} with val_tokens = {val_tokens:,}; lower val_tokens or take a "
            "longer corpus"
        )
    return Corpus(
        name=name,
        tokenizer=tokenizer,
        vocab_size=vocab_size(tokenizer),
        train=train,
        val=pool.read(start, val_tokens + 1),
        confirm_val=pool.read(start + held - val_tokens - 1, val_tokens + 1),
        digest=source.digest,
    )


def corpus_of(
    spec: TrainerSpec,
    base: Path = Path(),
    say: Callable[[str], None] = lambda _: None,
    *,
    source: Source | None = None,
) -> Corpus:
    """The corpus that a study trains and validates on; see `load_corpus`.

    `source`: its files, if they are known already, wherever they are.
    """
    slices = 1 + spec.confirm_val
    if source is not None:
        return _opened(source, spec.corpus, spec.tokenizer, spec.val_tokens, slices)
    return load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens, slices=slices, base=base, val=spec.val, say=say)


def check_size(corpus: Corpus, context: int, batch_tokens: int) -> None:
    """Raises UserError unless the corpus holds training windows for one step and a window to validate on."""
    problems = []
    if (tokens := corpus.num_windows(context) * context) < batch_tokens:
        problems.append(
            f'corpus "{corpus.name}": must hold at least one batch of {batch_tokens:,} tokens, but its whole windows '
            f"of context {context:,} hold {tokens:,} to train on; lower batch_tokens or take a longer corpus"
        )
    if (targets := len(corpus.val) - 1) < context:
        problems.append(
            f'corpus "{corpus.name}": val_tokens must be at least the context of {context:,}, but got {targets:,}; '
            "raise val_tokens"
        )
    if problems:
        raise UserError(problems)


class WindowSampler:
    """The windows of a run, drawn without replacement in a new random order each epoch.

    With W windows an epoch, sequence s of the run is window `order[s % W]` of epoch s // W, whatever the batch.
    """

    def __init__(self, corpus: Corpus, context: int, seed: int) -> None:
        self._train = corpus.train
        self._context = context
        self._seed = seed
        self._num_windows = corpus.num_windows(context)
        self._epoch: int | None = None
        self._order = np.empty(0, np.uint32)  # 40 MB for 10B tokens at a context of 1024

    def windows(self, first: int, count: int) -> Windows:
        """Inputs and targets of the run's sequences `first` to `first + count - 1`, [2, count, context]."""
        epochs, places = np.divmod(np.arange(first, first + count), self._num_windows)
        starts = np.empty(count, np.int64)
        for epoch in dict.fromkeys(epochs.tolist()):
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._shuffled(epoch)
            starts[epochs == epoch] = self._order[places[epochs == epoch]]
        ids = self._train.rows(starts * self._context, self._context + 1)
        windows = np.empty((2, count, self._context), np.int64)
        windows[0], windows[1] = ids[:, :-1], ids[:, 1:]
        return windows

    def _shuffled(self, epoch: int) -> npt.NDArray[np.uint32]:
        order = np.arange(self._num_windows, dtype=np.uint32)
        np.random.default_rng(np.random.SeedSequence([self._seed, epoch])).shuffle(order)
        return order


def val_windows(corpus: Corpus, context: int, *, confirm: bool = False) -> tuple[Windows, Windows]:
    """Inputs and targets of all whole validation windows in order, [count, context] each.

    With `confirm` those of the slice for runs on fresh seeds.
    """
    val = corpus.confirm_val if confirm else corpus.val
    used = (len(val) - 1) // context * context
    ids = val.astype(np.int64)
    return ids[:used].reshape(-1, context), ids[1 : used + 1].reshape(-1, context)


class CorpusInfo(NamedTuple):
    """One line of `hpstudy corpora`."""

    name: str
    description: str
    available: bool  # on this machine
    tokens: int | None  # with GPT-2's tokenizer; None if that depends on the path, or the corpus is not here


def list_corpora() -> list[CorpusInfo]:
    """What a study's `corpus` may be."""
    fineweb = open_shards(fineweb_shards())
    return [
        CorpusInfo("asv", "American Standard Version of 1901, installed with hpstudy", True, 1_009_473),
        CorpusInfo("text:PATH", "a file or a folder: text, .jsonl, .parquet, each also .gz, .zst", True, None),
        CorpusInfo("shards:GLOB", "GPT-2 ids: the 20240520 format or .npy; *val* validates", True, None),
        CorpusInfo("raw:GLOB", "GPT-2 ids without a header, as nanoGPT writes them", True, None),
        CorpusInfo("fineweb-edu", "educational web pages, GPT-2 ids", len(fineweb) > 0, len(fineweb) or None),
    ]


def prepare(
    name: str, tokenizer: str, *, base: Path = Path(), download: bool = True, num_shards: int = 10
) -> list[Path]:
    """The shards of a corpus, tokenized or downloaded if they are not here yet.

    For fineweb-edu, `num_shards` shards (1 to 99) of 100M training tokens are downloaded. Raises UserError as
    `load_corpus` does, MachineError if the download fails.
    """
    if name == "fineweb-edu" and download:
        download_fineweb(tokenizer, num_shards)
    return locate(name, tokenizer, base).files
