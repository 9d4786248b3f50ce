"""A study file that was edited or damaged after its study began: every command refuses it and changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import PROGRAM, Result, contents, hpstudy

READERS = {
    "replay": ("replay", "tiny", "search-0001", "--device", "cpu"),
    "report": ("report", "tiny"),
    "status": ("status", "tiny"),
    "sync": ("sync", "tiny"),
    "workspace": ("workspace", "tiny"),
    "results": ("results", "tiny"),
}


@pytest.fixture
def refused(copied: Path) -> Callable[..., Result]:
    """Runs `hpstudy ARGS` on the copied study and asserts exit code 2, an empty stdout and unchanged files."""

    def check(*args: object) -> Result:
        before = contents(copied)
        result = hpstudy(*args, "--runs", copied)
        assert (result.code, result.out) == (2, ""), result
        assert "Traceback" not in result.err
        assert contents(copied) == before
        return result

    return check


def test_run_names_each_key_that_changed_in_the_study_file(refused, tiny_file) -> None:
    path = tiny_file(replace={"batch_tokens = 256": "batch_tokens = 512", "low = 1e-4": "low = 2e-4"})
    message = refused("run", path).err
    assert f"{path}: changed after its study began: [hparams] batch_tokens: was 256, is 512; put" in message
    assert "[search] lr: was " in message
    assert "or copy the file under another name for another study" in message


@pytest.mark.parametrize("args", READERS.values(), ids=READERS)
def test_a_command_that_reads_a_study_refuses_an_edited_key_of_its_frozen_file(refused, copied: Path, args) -> None:
    frozen = copied / "tiny" / "study.toml"
    text = frozen.read_text()
    assert "evals = 4\n" in text
    frozen.write_text(text.replace("evals = 4\n", "evals = 5\n"))
    assert refused(*args).err == (
        f"{frozen}: changed after its study began: [trainer] evals: was 4, is 5; {repair(copied)}\n"
    )


def repair(runs: Path) -> str:
    """The remedy for a damaged copy of the study file."""
    return f"`hpstudy run tiny --runs {runs}` writes this copy again from the study's own file"


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "emptied": (
        lambda _: b"",
        'question: missing; say what the study asks, as in `question = "Are GPT-3\'s betas right here?"`',
    ),
    "binary": (lambda _: b"\xff\xfe\0", "not valid TOML: Invalid statement (at line 1, column 1)"),
    "cut": (lambda text: text[:12], "not valid TOML: Invalid value (at end of document)"),
    "damaged byte in a key": (
        lambda text: text.replace(b"evals", b"ev\xffls"),
        "not valid TOML: Expected '=' after a key in a key/value pair (at line 11, column 3)",
    ),
    "damaged byte in a value": (
        lambda text: text.replace(b'"gpt2:256"', b'"gpt2:\xff56"'),
        '[trainer] tokenizer: "gpt2:N" needs a whole number N with 256 <= N <= 50256, but got "gpt2:\ufffd56"',
    ),
    "damaged byte in the question": (
        lambda text: text.replace(b"smallest", b"sm\xffllest"),
        'changed after its study began: question: was "Does the smallest study there is run?", is "Does the '
        'sm\ufffdllest study there is run?"',
    ),
}


@pytest.mark.parametrize("args", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_of_the_study_file_is_refused_by_name(refused, copied: Path, damage, problem, args) -> None:
    frozen = copied / "tiny" / "study.toml"
    frozen.write_bytes(damage(frozen.read_bytes()))
    assert refused(*args).err == f"{frozen}: {problem}; {repair(copied)}\n"


def test_the_command_that_a_damaged_copy_names_writes_it_again(copied: Path, tiny_file) -> None:
    frozen = copied / "tiny" / "study.toml"
    whole = frozen.read_bytes()
    frozen.write_bytes(b"")
    assert hpstudy("run", tiny_file(), "--runs", copied).code == 0
    assert frozen.read_bytes() == whole


def test_the_program_refuses_a_damaged_study_file_without_a_traceback(copied: Path) -> None:
    frozen = copied / "tiny" / "study.toml"
    frozen.write_bytes(b"\xff" + frozen.read_bytes())
    command = [PROGRAM, "replay", "tiny", "search-0001", "--runs", str(copied)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{frozen}: not valid TOML: Invalid statement (at line 1, column 1); {repair(copied)}\n"
