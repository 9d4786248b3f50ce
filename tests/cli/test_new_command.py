"""`hpstudy new`: a study file that loads, that `check` accepts without a warning, and that overwrites nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from hpstudy.study import load_study
from hpstudy.study.json_schema import study_schema
from tests.helpers.command_line import Result, contents, hpstudy

WORDS = ("in", "the", "beginning", "god", "created", "heaven", "and", "earth", "was", "waste", "void")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a text of 300 kB, the same as lines of JSON, and a text of 10 kB."""
    words = [WORDS[number * number % len(WORDS)] + str(number % 97) for number in range(50_000)]
    (tmp_path / "book.txt").write_text(" ".join(words))
    lines = (json.dumps({"text": " ".join(words[start : start + 100])}) for start in range(0, len(words), 100))
    (tmp_path / "book.jsonl").write_text("\n".join(lines))
    (tmp_path / "short.txt").write_text(" ".join(words[:1500]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_new_study_is_checked_without_a_warning_and_never_overwritten() -> None:
    result = hpstudy("new", "mine", "--corpus", "text:book.txt", "--minutes", 2, "--device", "cpu")
    assert result.code == 0, result.err
    file, time, check, run = (line.split(maxsplit=1) for line in result.out.splitlines())
    assert (file, check) == (["file", "studies/mine.toml"], ["next", "hpstudy check mine"])
    assert (time[0], run) == ("time", ["hpstudy", "run mine"])

    text = Path("studies/mine.toml").read_text()
    study = load_study("mine")
    assert (study.warnings, study.spec.corpus, study.format) == ((), "text:book.txt", 4)
    assert list(study.space) == ["lr", "beta1", "beta2", "weight_decay"]
    assert study.baseline_proposal() is not None
    values = text.partition("[trainer]")[2].splitlines()[1:]
    assert all("  # " in line for line in values if "=" in line)  # the reason beside each value

    schema = json.loads((Path("studies") / text.partition("\n")[0].removeprefix("#:schema ./")).read_text())
    assert schema == study_schema()
    assert list(Draft7Validator(schema).iter_errors(tomllib.loads(text))) == []

    checked = hpstudy("check", "mine", "--device", "cpu")
    assert (checked.code, checked.err) == (0, "")
    assert "up to 28 runs" in checked.out

    before = contents(Path("studies"))
    again = hpstudy("new", "mine", "--corpus", "text:book.jsonl")
    assert (again.code, again.out) == (2, "")
    assert again.err == "studies/mine.toml: exists already, and `new` overwrites no study; take another name\n"
    assert contents(Path("studies")) == before


@pytest.mark.usefixtures("folder")
def test_json_lines_and_a_path_elsewhere_work_too() -> None:
    result = hpstudy("new", "my/lines.toml", "--corpus", "text:book.jsonl", "--minutes", 1, "--device", "cpu")
    assert result.code == 0, result.err
    assert load_study("my/lines.toml").spec.corpus == "text:book.jsonl"
    assert Path("my/.hpstudy.schema.json").exists()


MISTAKES = {
    "no such text": (("x", "--corpus", "text:nothere.txt"), "but does not exist; correct the path"),
    "a glob": (("x", "--corpus", "text:*.txt"), "name the folder, because globs are not read here"),
    "a path alone": (("x", "--corpus", "book.txt"), 'did you mean "text:book.txt"?'),
    "too short": (("x", "--corpus", "text:short.txt"), "must hold at least 20,480 tokens, of which 10% validate"),
    "a shipped name": (("betas", "--corpus", "asv"), "comes with hpstudy; take another name"),
    "no name": (("a b", "--corpus", "asv"), "a name has at most 64 letters"),
    "no preset": (("x", "--corpus", "asv", "--model", "gpt2"), 'did you mean "gpt-2x64"?'),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("args", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_remedy_and_writes_nothing(args: tuple[str, ...], remedy: str) -> None:
    result: Result = hpstudy("new", *args)
    assert (result.code, result.out) == (2, "")
    assert remedy in result.err
    assert not Path("studies").exists()


def test_the_schema_is_printed() -> None:
    result = hpstudy("schema")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == study_schema()
