"""What is fixed in every run of a study: model, data, budget, evaluation, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpstudy.errors import UserError, did_you_mean

MAX_TRIALS = 1_000_000  # of a study
MAX_STEPS = 10_000_000  # of a run; GPT-3 had 600,000
PrecisionChoice = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a GPT-2 transformer. The width must be a multiple of the heads."""

    layers: int
    heads: int
    width: int

    def num_params(self, vocab_size: int, context: int) -> int:
        """Parameters with tied embeddings and without padding: 124,439,808 for GPT-2 at 50257 and 1024."""
        c = self.width
        block = 12 * c * c + 13 * c  # qkv 3c²+3c, projection c²+c, mlp 8c²+5c, two LayerNorms 4c
        return vocab_size * c + context * c + self.layers * block + 2 * c

    @property
    def num_weights(self) -> int:
        """Parameters without token and position embeddings."""
        return self.num_params(0, 0)


PRESETS: dict[str, ModelShape] = {
    # small models for CPUs, named layers x width: a step of 2x64 takes milliseconds on one core
    "gpt-2x64": ModelShape(layers=2, heads=2, width=64),
    "gpt-4x128": ModelShape(layers=4, heads=4, width=128),
    "gpt-6x256": ModelShape(layers=6, heads=4, width=256),
    "gpt-8x512": ModelShape(layers=8, heads=8, width=512),
    # GPT-3's family, arXiv:2005.14165 Table 2.1
    "gpt-125m": ModelShape(layers=12, heads=12, width=768),
    "gpt-350m": ModelShape(layers=24, heads=16, width=1024),
}
"""The models that `new` chooses from and `bench` measures, from small to large."""

MODELS: dict[str, ModelShape] = {
    **PRESETS,
    # sizes between them, for the rungs of a ladder
    "gpt-2x32": ModelShape(layers=2, heads=1, width=32),
    "gpt-3x96": ModelShape(layers=3, heads=3, width=96),
    "gpt-5x160": ModelShape(layers=5, heads=5, width=160),
    "gpt-6x192": ModelShape(layers=6, heads=6, width=192),
}
"""Every model that a study file may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """Everything that is the same in every run of a study."""

    model: ModelShape
    corpus: str  # "asv", "text:PATH", "shards:GLOB", "raw:GLOB", "fineweb-edu"
    tokenizer: str  # "gpt2", "gpt2:N", "bytes"
    context: int  # tokens in one sequence
    tokens: int | None  # budget of one run in tokens; None when `seconds` is given
    seconds: float | None = None  # budget of one run in seconds, turned into tokens before step 1
    evals: int  # evaluations of one run, equally spaced in tokens
    val_tokens: int  # validation tokens of a slice
    val: str | None = None  # which of the corpus's shards validate: a glob, or "tail"; None: their names tell
    confirm_val: bool = False  # runs on other seeds than the search's validate on a second slice
    seed: int = 0  # of initialisation and data order in the search phase
    threads: int = 1  # CPU threads of one training
    precision: PrecisionChoice = "auto"
    deterministic: bool = True  # a GPU repeats a run to the last bit; a CPU always does
    gpus: int = 1  # GPUs of one training
    processes: int = 1  # processes of one training on a CPU; at most one of the two is above 1
    ramp_multiple: int = 1  # sequences; the batches of a ramp are multiples of it

    @property
    def ranks(self) -> int:
        """Processes that train one run together, each on its own GPU or its own cores."""
        return num_ranks(self.gpus, self.processes)

    @property
    def ranks_named(self) -> str:
        """`2 GPUs a training`, or an empty string if it has one process."""
        named = ranks_named(self.gpus, self.processes)
        return named and f"{named} a training"

    def rank_sequences(self, batch_tokens: int) -> int:
        """Sequences of a batch that each rank takes."""
        return rank_sequences(batch_tokens, self.context, self.ranks)

    @property
    def ramp_unit(self) -> int:
        """Tokens of which the batches of a ramp are multiples."""
        return self.ramp_multiple * self.context


def num_ranks(gpus: int, processes: int) -> int:
    """Processes that train one run together. At most one of the two numbers is above 1."""
    return gpus * processes


def ranks_named(gpus: int, processes: int) -> str:
    """`2 GPUs`, or an empty string for a training of one process."""
    return f"{gpus} GPUs" if gpus > 1 else f"{processes} processes" if processes > 1 else ""


def rank_sequences(batch_tokens: int, context: int, ranks: int) -> int:
    """Sequences of a batch that each rank takes."""
    return batch_tokens // (context * ranks)


def corpus_hint(name: str) -> str:
    """`; did you mean "text:my.txt"?` for a corpus that is stated as a path only, or an empty string."""
    if ":" in name or not any(mark in name for mark in "./~*"):
        return ""
    if name.endswith((".bin", ".npy")):
        raw = "" if name.endswith(".npy") else f', or "raw:{name}" if it has no header'
        return f'; did you mean "shards:{name}"{raw}?'
    folder = name.partition("*")[0].rpartition("/")[0] or "."
    return f'; did you mean "text:{folder if "*" in name else name}"{", the whole folder" if "*" in name else ""}?'


def takes_any_tokenizer(corpus: str) -> bool:
    """Whether a corpus is text, and not ids that were made with one tokenizer."""
    return corpus == "asv" or corpus.startswith("text:")


def embedding_share(model: ModelShape, vocab_size: int, context: int) -> float:
    """The token embeddings' share of the parameters. The output layer is the same matrix."""
    return vocab_size * model.width / model.num_params(vocab_size, context)


def fitting_tokenizer(model: ModelShape) -> str:
    """GPT-2's first N ranks, N a power of two, so that token embeddings are at most a quarter of the parameters.

    All of them from N = 32768 on.
    """
    most = int(model.num_params(0, 0) / 3 / model.width)
    return "gpt2" if most >= 32_768 else f"gpt2:{1 << max(most.bit_length() - 1, 8)}"


def flops_per_token(model: ModelShape, tokenizer: str, context: int) -> int:
    """Multiplications and additions that training on one token needs, with no padding and nothing recomputed.

    6 for each weight of a matrix product (once forward, twice backward), 12·L·C·T for attention.
    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    L, C, V = model.layers, model.width, vocab_size(tokenizer)
    return 6 * (12 * L * C * C + V * C) + 12 * L * C * context


def vocab_size(tokenizer: str) -> int:
    """Vocabulary size of a tokenizer, without padding: "gpt2" 50257, "gpt2:N" its first N ranks, "bytes" 256.

    Raises UserError for an unknown name, or an N outside 256..50256.
    """
    known = {"gpt2": 50257, "bytes": 256}
    if tokenizer in known:
        return known[tokenizer]
    base, _, ranks = tokenizer.partition(":")
    if base != "gpt2":
        raise UserError(
            f'unknown tokenizer "{tokenizer}"{did_you_mean(base, known)}; known are "gpt2", "gpt2:N" and "bytes"'
        )
    if not (ranks.isascii() and ranks.isdigit() and len(ranks) <= 5 and 256 <= int(ranks) <= 50256):
        raise UserError(f'"gpt2:N" needs a whole number N with 256 <= N <= 50256, but got "{tokenizer}"')
    return int(ranks)
