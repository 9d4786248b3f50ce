"""Files: a write is whole or nothing, JSON keeps every number, and damage is named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.errors import MachineError, UserError
from hpstudy.files import (
    CACHE_REMEDY,
    NON_FINITE,
    STORE_REMEDY,
    cache_dir,
    from_json,
    read_json,
    spelled,
    to_json,
    unspelled,
    write_atomic,
    writing,
)
from tests.helpers.disk import full_disk

FLOATS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])
TEXT = st.text().filter(lambda text: text not in NON_FINITE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)

# Writing


def test_a_file_is_written_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_atomic(path, "é", b"\0\xff", memoryview(b"view"))
    assert path.read_bytes() == b"\xc3\xa9\0\xffview"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("a longer one", "short", ""):
        write_atomic(path, content)
        assert path.read_text() == content
        assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_content_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with full_disk(10), pytest.raises(MachineError) as caught:
        write_atomic(path, "new" * 1000)
    assert str(caught.value) == (
        f"{path}: cannot be written (File too large); what was recorded before is safe; put this right and run the "
        "same command again"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_writing_ends_with_the_remedy_of_the_caller(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(MachineError) as caught:
        write_atomic(folder, "new", remedy=CACHE_REMEDY)
    assert str(caught.value) == (
        f"{folder}: cannot be written (Is a directory); point HPSTUDY_CACHE at a folder that can be written"
    )
    with pytest.raises(MachineError, match=rf"^{folder}: cannot be written \(Is a directory\); {STORE_REMEDY}$"):
        write_atomic(folder, "new")
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_while_writing_becomes_a_machine_error_and_others_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(MachineError, match=rf"^{tmp_path}: cannot be written \(Is a directory\); empty it$") as caught,
        writing(tmp_path, "empty it"),
    ):
        tmp_path.write_text("")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ValueError, match=r"^not about the disk$"), writing(tmp_path):
        raise ValueError("not about the disk")


def test_a_file_is_old_or_new_when_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    program = f"""
from pathlib import Path
from hpstudy.files import to_json, write_atomic
print(flush=True)
while True:
    for version in ("old", "new"):
        write_atomic(Path({str(path)!r}), to_json({{"is": [version] * 20_000}}))
"""
    for pause in (0.05, 0.11, 0.17):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause)
            process.kill()
        found = read_json(path)
        assert found is None or found["is"] in (["old"] * 20_000, ["new"] * 20_000)


def test_readers_of_a_file_that_several_write_at_once_see_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    versions = [letter * 100_000 for letter in "abcd"]
    write_atomic(path, versions[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(write_atomic, path, version) for _ in range(10) for version in versions]
        while not all(write.done() for write in writes):
            assert path.read_text() in versions
    assert [write.result() for write in writes] == [None] * 40
    assert path.read_text() in versions
    assert list(tmp_path.iterdir()) == [path]


# JSON


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not standard JSON")


@given(JSON)
def test_json_loses_nothing_and_stays_standard(value: object) -> None:
    text = to_json(value)
    assert repr(from_json(text)) == repr(value)  # repr, because NaN differs from itself and -0.0 equals 0.0
    assert repr(from_json(text.encode())) == repr(value)
    assert "\n" not in text
    json.loads(text, parse_constant=refuse_constant)


@given(JSON)
def test_a_finite_copy_has_no_other_numbers_and_is_restored_whole(value: object) -> None:
    json.dumps(spelled(value), allow_nan=False)
    assert repr(unspelled(spelled(value))) == repr(value)


def test_tuples_become_lists() -> None:
    assert from_json(to_json({"a": (1, (2.0, math.inf))})) == {"a": [1, [2.0, math.inf]]}


@pytest.mark.parametrize("text", ["", "{", "[1,]", "a", b"\xff"])
def test_text_that_is_not_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (its message is Python's)
        from_json(text)


# Reading


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None


def test_a_file_reads_as_what_is_built_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, to_json({"loss": math.inf}))
    assert read_json(path) == {"loss": math.inf}
    assert read_json(path, lambda raw: raw["loss"]) == math.inf


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"{}", "'loss' is missing"),
        (b"[]", "list indices must be integers or slices, not str"),
        (b"null", "'NoneType' object is not subscriptable"),
        (b'{"loss": "a"}', "could not convert string to float: 'a'"),
        (b'{"loss": 1, "of": "\xe9"}', "byte 19 is not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(MachineError) as caught:
        read_json(path, lambda raw: float(raw["loss"]), "remove it")
    assert str(caught.value) == f"{path}: must be a file that hpstudy wrote, but it is damaged: {problem}; remove it"


# The cache folder


def test_the_cache_is_in_the_chosen_folder_or_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HPSTUDY_CACHE", "~/chosen")
    assert cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("HPSTUDY_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "hpstudy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "hpstudy"


def test_a_user_without_a_home_is_told_to_name_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPSTUDY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match=r"^HPSTUDY_CACHE: must name a folder"):
        cache_dir()
