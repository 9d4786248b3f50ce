"""Random study files: every valid one loads, and every other is refused with the place of each problem."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpstudy.errors import UserError
from hpstudy.hparams import RULES
from hpstudy.study import changed_keys, load_study
from hpstudy.study.load import study_name
from hpstudy.study.schema import StudyFile
from tests.helpers.random_studies import Tables, studies
from tests.helpers.study_files import illegal_values, parse, rendered, toml

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Valid studies


@QUICK
@given(studies())
def test_every_valid_study_loads_with_all_its_keys(data: Tables) -> None:
    study = parse(rendered(data))
    assert study.question == data["question"]
    assert list(study.space) == list(data["search"])
    assert illegal_values(study.baseline_hparams(study.spec.tokens)) == []
    assert changed_keys(study.resolved(), parse(rendered(data)).resolved()) == []


def test_the_random_studies_state_every_key() -> None:
    stated: set[str] = set()

    @settings(max_examples=200, database=None, derandomize=True, deadline=None)
    @given(studies())
    def collect(data: Tables) -> None:
        stated.update(".".join(place[:2]) for place, _ in places(data) if isinstance(place[-1], str))

    collect()
    for name, field in StudyFile.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        assert {f"{name}.{key}" for key in keys} - stated <= {"trainer.tokens", "objective.goal"}
    for key in RULES:
        assert {f"hparams.{key}", f"search.{key}"} & stated


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys and indices that lead to each value in nested tables and arrays, and the value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key), item
        yield from places(item, (*at, key))


# Damaged files

HOSTILE = st.sampled_from(
    [
        *(0, -1, 2**53, 2**63, -(2**64), 10**400, 16**4000, 0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308),
        *("", "\0", "\x1b[2J", "é\u202e𝔘", "text:", "gpt2:9", "none", "tpe", "x" * 10_000, True, False, [], {}),
        *([[[[1]]]], {"a": {"b": {"c": [{}]}}}, {"choices": [[], {}, "a"]}, {"low": 2, "high": 1}, [0] * 5000),
    ]
)
NAMES = st.sampled_from(["", "lr", "name", "low", "choices", "a.b", "\n", "é", "\x1b[31m", "__class__"])


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Tables, tuple[str, ...]]:
    """A valid study with one change, and the words of which some problem must name one."""
    data = deepcopy(draw(studies()))
    place, value = draw(st.sampled_from([found for found in places(data) if isinstance(found[0][-1], str)]))
    table: Any = data
    for part in place[:-1]:
        table = table[part]
    key, name = place[-1], draw(NAMES)
    match draw(st.sampled_from(["replace", "remove", "rename", "add", "swap", "nest"])):
        case "replace":
            table[key] = draw(HOSTILE)
        case "remove":
            del table[key]
        case "rename":
            table[name] = table.pop(key)
        case "add":
            table[name] = draw(HOSTILE)
        case "swap" if isinstance(value, dict) and "low" in value:
            value["low"], value["high"] = value["high"], value["low"]
        case "swap":
            table[key] = str(value)
        case "nest":
            for _ in range(draw(st.sampled_from([1, 2, 50]))):
                table[key] = [table[key]]
    return data, (place[0], key, name)


SECTIONS = "|".join(StudyFile.model_fields)
PLACED = re.compile(rf"\[({SECTIONS})\] |(question|yes|format): |unknown key |\[[^]]*\] (nested|a whole|.*: a whole)")


def problems_of(path: Path, content: bytes) -> list[str]:
    """Every problem of a file of these bytes; empty if it is a study. Any error except UserError fails the test."""
    path.write_bytes(content)
    try:
        load_study(str(path))
    except UserError as error:
        problems = error.problems
    else:
        return []
    assert problems
    assert all(problem.startswith(f"{path}: ") for problem in problems)
    assert not re.search("[\0-\x1f\x7f-\x9f]", "".join(problems))  # a terminal obeys these characters
    return [problem.removeprefix(f"{path}: ") for problem in problems]


@QUICK
@given(mutations())
def test_a_changed_study_is_valid_or_its_key_is_named(tmp_path: Path, mutation: tuple[Tables, tuple[str, ...]]) -> None:
    data, words = mutation
    words = UserError(words).problems  # as a message shows them
    problems = problems_of(tmp_path / "x.toml", rendered(data).encode())
    assert all(PLACED.match(problem) for problem in problems), problems
    assert not problems or any(word in problem for problem in problems for word in words), problems


DAMAGE = st.one_of(
    st.tuples(st.just(b""), st.just(10**6)),  # cut short
    st.tuples(st.binary(max_size=9), st.integers(0, 20)),
    st.tuples(
        st.sampled_from([b"\n", b"]", b"=", b'"', b"\0", b"\xff", b"[[", b"1979-05-27", b"{{"]), st.integers(0, 3)
    ),
)


@QUICK
@given(studies(), st.floats(0, 1), DAMAGE)
def test_a_damaged_file_is_valid_or_the_line_or_key_is_named(
    tmp_path: Path, data: Tables, share: float, damage: tuple[bytes, int]
) -> None:
    text, (new, length) = rendered(data).encode(), damage
    at = int(share * len(text))
    problems = problems_of(tmp_path / "x.toml", text[:at] + new + text[at + length :])
    syntax = re.compile(r"not valid TOML: .*(line \d+|end of document|key|limit|overwrite)|must be UTF-8, but byte \d+")
    assert all(PLACED.match(problem) or syntax.match(problem) for problem in problems), problems


@QUICK
@given(st.binary(max_size=200))
def test_random_bytes_are_no_study(tmp_path: Path, content: bytes) -> None:
    assert problems_of(tmp_path / "x.toml", content)


GRID = {key: {"choices": [0.1 + 0.001 * i for i in range(100)]} for key in ("beta1", "beta2", "eps")}
BOMBS = {
    "brackets": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{a = " * 50_000,
    "dotted key": "question" + ".a" * 2000 + " = 1",
    "nested seeds": "confirm = { seeds = " + "[" * 300 + "]" * 300 + "}",
    "hexadecimal": "format = 0x" + "f" * 100_000,
    "seeds": f"confirm = {{ seeds = {list(range(100_000))} }}",
    "choices": f"search = {{ micro_batch = {{ choices = {list(range(1, 100_000))} }} }}",
    "grid": f"search = {toml(GRID)}\nbudget = {{ sampler = 'grid' }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_made_to_exhaust_its_reader_is_refused_within_seconds(tmp_path: Path, bomb: str) -> None:
    began = time.process_time()
    problems = problems_of(tmp_path / "x.toml", BOMBS[bomb].encode())
    assert time.process_time() - began < 5  # each takes some tenths of a second
    assert max(map(len, problems)) < 1000


# Names


@QUICK
@given(st.text(max_size=80) | st.lists(st.sampled_from(["..", "/", "a", ".toml", "\\", "~", " "])).map("".join))
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    try:
        study = study_name(name)
    except UserError:
        return
    runs = tmp_path / "runs"
    assert (runs / study).resolve().parent == runs.resolve()
    assert study.isascii()
    assert len(study) <= 64
