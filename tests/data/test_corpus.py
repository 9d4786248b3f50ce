"""What a corpus trains and validates on, and the windows of every step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.data.corpus import Corpus, WindowSampler, check_size, list_corpora, load_corpus, val_windows
from hpstudy.data.shards import TokenSequence
from hpstudy.data.tokenizer import load_tokenizer
from hpstudy.errors import UserError
from tests.helpers.corpora import problems, write_by_hand


@pytest.fixture(scope="module")
def asv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asv-cache")


@pytest.fixture
def asv(asv_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("HPSTUDY_CACHE", str(asv_cache))  # one tokenization for the whole module
    return load_corpus("asv", "gpt2", 65_536)


def in_memory(num_tokens: int, *cuts: int) -> Corpus:
    """The ids 0, 1, 2, ... as training tokens, in shards cut at `cuts`."""
    shards = np.split(np.arange(num_tokens, dtype=np.uint16), cuts)
    return Corpus(
        name="numbers",
        tokenizer="gpt2",
        vocab_size=50_257,
        train=TokenSequence(shards),
        val=np.arange(11, dtype=np.uint16),
        confirm_val=np.arange(10, 21, dtype=np.uint16),
        digest="",
    )


# what trains and what validates


def test_asv_is_a_million_gpt2_tokens_of_which_the_tail_validates(asv: Corpus):
    tokens = np.concatenate([asv.train.read(0, asv.num_train_tokens), asv.val])
    assert len(tokens) == 1_009_473
    assert [corpus.tokens for corpus in list_corpora() if corpus.name == "asv"] == [len(tokens)]
    assert len(asv.val) == 65_537
    text = load_tokenizer("gpt2").decode(tokens)
    assert hashlib.sha256(text.encode()).hexdigest() in asv.digest
    assert text.startswith("In the beginning God created the heavens and the earth.")


@pytest.mark.usefixtures("cache")
def test_two_slices_share_no_target_with_each_other_or_with_training(tmp_path: Path):
    write_by_hand(tmp_path / "1.bin", list(range(20)))
    corpus = load_corpus("shards:*.bin", "gpt2", 4, slices=2, base=tmp_path)
    assert corpus.train.read(0, corpus.num_train_tokens).tolist() == list(range(11))
    assert corpus.val.tolist() == [11, 12, 13, 14, 15]
    assert corpus.confirm_val.tolist() == [15, 16, 17, 18, 19]
    one = load_corpus("shards:*.bin", "gpt2", 4, base=tmp_path)
    assert one.val.tolist() == one.confirm_val.tolist() == [15, 16, 17, 18, 19]


@pytest.mark.usefixtures("cache")
def test_a_corpus_too_short_for_two_slices_is_refused(tmp_path: Path):
    write_by_hand(tmp_path / "1.bin", list(range(9)))
    with pytest.raises(UserError, match=r"must hold twice val_tokens and one more to validate on.*lower val_tokens"):
        load_corpus("shards:*.bin", "gpt2", 4, slices=2, base=tmp_path)


@pytest.mark.usefixtures("cache")
def test_shards_without_val_hold_out_the_tail_even_across_shards(tmp_path: Path):
    write_by_hand(tmp_path / "1.bin", list(range(10)))
    write_by_hand(tmp_path / "2.bin", [10, 11])
    write_by_hand(tmp_path / "3.bin", [12])
    corpus = load_corpus("shards:*.bin", "gpt2", 4, base=tmp_path)
    assert corpus.train.read(0, len(corpus.train)).tolist() == list(range(8))
    assert corpus.val.tolist() == [8, 9, 10, 11, 12]


@pytest.mark.usefixtures("cache")
def test_a_corpus_that_is_too_short_is_refused_with_both_sizes(tmp_path: Path):
    (tmp_path / "a.txt").write_text("0123456789")
    assert "holds 10 with val_tokens = 9" in problems("text:a.txt", "bytes", 9, base=tmp_path)[0]
    corpus = load_corpus("text:a.txt", "bytes", 2, base=tmp_path)  # 7 tokens to train on, 3 windows of 2
    check_size(corpus, 2, 6)
    with pytest.raises(UserError) as caught:
        check_size(corpus, 3, 7)
    batch, val = caught.value.problems
    assert "one batch of 7 tokens, but its whole windows of context 3 hold 6" in batch
    assert "at least the context of 3, but got 2" in val


# the windows of a run


def test_each_token_is_a_target_once_an_epoch_and_follows_its_input():
    corpus = in_memory(1000, 130, 131, 700)
    inputs, targets = WindowSampler(corpus, 9, seed=3).windows(0, corpus.num_windows(9))
    assert corpus.num_windows(9) == 111
    assert sorted(targets.ravel().tolist()) == list(range(1, 1000))
    assert (targets == inputs + 1).all()
    assert inputs.dtype == targets.dtype == np.int64


def test_orders_differ_between_epochs_and_seeds_and_repeat_with_the_seed():
    corpus = in_memory(1001)
    firsts = [WindowSampler(corpus, 10, seed).windows(0, 300)[0][:, 0] for seed in (0, 1)]
    epochs = [order[start : start + 100] for order in firsts for start in (0, 100, 200)]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6
    assert all(sorted(epoch.tolist()) == list(range(0, 1000, 10)) for epoch in epochs)
    np.testing.assert_array_equal(WindowSampler(corpus, 10, 1).windows(0, 300)[0][:, 0], firsts[1])


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 101), max_size=5).map(sorted),
    context=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 200),
    counts=st.lists(st.integers(0, 40), max_size=6),
)
def test_the_tokens_of_a_step_do_not_depend_on_how_they_are_read(cuts, context, seed, first, counts):
    """Neither on micro-batches, nor on resuming in the middle, epochs' ends or the shards' cuts."""
    whole = WindowSampler(in_memory(101), context, seed).windows(first, sum(counts))
    sampler = WindowSampler(in_memory(101, *cuts), context, seed)
    starts = [first + sum(counts[:i]) for i in range(len(counts))]
    parts = [sampler.windows(start, count) for start, count in zip(starts, counts, strict=True)]
    for side in (0, 1):
        pieces = [part[side] for part in parts] or [np.empty((0, context))]
        np.testing.assert_array_equal(np.concatenate(pieces), whole[side])


def test_validation_windows_are_the_whole_ones_in_order():
    inputs, targets = val_windows(in_memory(100), 3)  # val is 0..10: ten targets, three windows
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert targets.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_val_tokens_is_the_number_of_validation_targets(asv: Corpus):
    inputs, targets = val_windows(asv, 128)
    assert targets.shape == (512, 128)
    assert [inputs[0, 0], *targets.ravel()] == asv.val.tolist()
