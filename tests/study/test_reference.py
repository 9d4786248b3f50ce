"""The reference of study files: it names every key and metric, its examples are legal, and its page is up to date."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import Any

import pytest

from hpstudy.hparams import COORDINATES, RAW_KEY, RULES
from hpstudy.records import GLOSSARY
from hpstudy.study.reference import COORDINATES_TITLE, reference_markdown
from hpstudy.study.schema import LadderTable, StudyFile, Table
from tests.helpers.study_files import parse, text

HYPERPARAMETERS = "[hparams], [search] and [baseline] overrides: the hyperparameters"
ROW = re.compile(r"^\| `(?P<key>[^`]+)` \|(?P<cells>.*)\|$")
TOP_LEVEL = {"question", "yes", "format", "part_of"}  # all other keys of a file are sections
SECTIONS: dict[str, list[str]] = {  # heading -> where its keys are in a file
    "Top level": [],
    "[baseline]": ["baseline"],
    "[trainer]": ["trainer"],
    "[trainer] model, as a table": ["trainer", "model"],
    "[search] KEY, a range": ["search", "lr"],
    "[search] KEY, a list": ["search", "batch_tokens"],
    "[objective]": ["objective"],
    "[budget]": ["budget"],
    "[budget] sampler": ["budget", "sampler"],
    "[budget] pruner": ["budget", "pruner"],
    "[confirm]": ["confirm"],
    "[cluster]": ["cluster"],
    "[wandb]": ["wandb"],
}
LADDER = "[ladder]"
OF_EARLIER_VERSIONS = {"pack"}  # read and ignored


def sections() -> dict[str, dict[str, list[str]]]:
    """{heading: {key: the other cells of its row}} of the whole reference."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in reference_markdown().splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line.removeprefix("## "), {})
        elif row := ROW.match(line):
            assert row["key"] not in rows, f"{row['key']} is listed twice"
            rows[row["key"]] = [cell.strip() for cell in re.split(r"(?<!\\)\|", row["cells"])]
    return found


def tables(of: type[Table]) -> list[type[Table]]:
    """A table of the schema and every table within it, also those that are one of several types of a key."""
    found: list[type[Table]] = []
    pending: list[Any] = [of]
    while pending:
        one = pending.pop()
        if isinstance(one, type) and issubclass(one, Table):
            if one not in found:
                found.append(one)
                pending += [field.annotation for field in one.model_fields.values()]
        else:
            pending += getattr(one, "__args__", ())
    return found


EXAMPLES = [
    (heading, cells[-1].strip("`").replace("\\|", "|"))
    for heading, rows in sections().items()
    if heading in SECTIONS
    for cells in rows.values()
    if cells[-1]
]


def test_every_key_of_every_table_has_one_row_with_its_meaning() -> None:
    assert set(sections()) == {*SECTIONS, LADDER, HYPERPARAMETERS, COORDINATES_TITLE, "Metrics"}
    known = {*SECTIONS, LADDER}
    found = [(key, cells[3]) for heading, rows in sections().items() if heading in known for key, cells in rows.items()]
    expected = [
        (key, field.description)
        for table in [*tables(StudyFile), LadderTable]
        for key, field in table.model_fields.items()
        if (table is not StudyFile or key in TOP_LEVEL) and key not in OF_EARLIER_VERSIONS
    ]
    assert Counter(found) == Counter(expected)
    assert all(description for _, description in expected)


def test_every_hyperparameter_has_a_row_with_its_range_unit_and_meaning() -> None:
    rows = sections()[HYPERPARAMETERS]
    assert list(rows) == list(RULES)
    for key, (legal, unit, _, scale, meaning, _) in rows.items():
        assert (unit, meaning) == (RULES[key].unit, RULES[key].doc)
        assert scale == (f"`{RULES[key].scale}`" if RULES[key].kind is float else "")
        assert key == "clip_mode" or legal.endswith(f"number in {RULES[key]}")


def test_every_coordinate_has_a_row_with_what_it_stands_for_and_an_example_that_a_study_accepts() -> None:
    rows = sections()[COORDINATES_TITLE]
    assert list(rows) == list(COORDINATES)
    for key, (legal, unit, raw, scale, meaning, example) in rows.items():
        rule = COORDINATES[key]
        assert (legal, unit, raw) == (f"number in {rule}", rule.unit, f"`{RAW_KEY[key]}`")
        assert (scale, meaning) == (f"`{rule.scale}`", rule.doc)
        hparams = {} if key == "batch_fraction" else {"batch_tokens": 4096}
        search = tomllib.loads(example.strip("`"))
        assert list(parse(text(search=search, hparams=hparams, trainer__tokens=8_000_000)).space) == [key]


def test_every_metric_has_a_row_with_its_unit_and_meaning() -> None:
    expected = {metric.name: [metric.unit, metric.doc] for metric in GLOSSARY.values()}
    assert sections()["Metrics"] == expected


def test_every_row_has_an_example() -> None:
    for heading, rows in sections().items():
        assert heading == "Metrics" or all(cells[-1] for cells in rows.values())


@pytest.mark.parametrize("example", [cells[-1].strip("`") for cells in sections()[LADDER].values()])
def test_every_example_of_a_ladder_is_legal(example: str) -> None:
    LadderTable.model_validate(tomllib.loads(example.replace("\\|", "|")))


@pytest.mark.parametrize(("heading", "example"), EXAMPLES, ids=[f"{h}: {e}" for h, e in EXAMPLES])
def test_every_example_is_toml_that_a_study_accepts(heading: str, example: str) -> None:
    ((key, value),) = tomllib.loads(example).items()
    edits: dict[str, Any] = {
        "hparams": {"batch_tokens": 4096},
        "trainer__tokens": 8_000_000,
        "search__beta1": {"low": 0.8, "high": 0.95},
    }
    match heading, key:
        case "[budget]", "first":
            edits["search"] = {other: {"low": 0.1, "high": 0.999} for other in value[0]}
            del edits["search__beta1"]
        case "[trainer]", "seconds":
            edits["trainer__tokens"] = None
        case "[trainer]", "val":
            edits["trainer__corpus"] = "shards:*.bin"
        case "[trainer]", "context":
            edits["hparams"] = {"batch_tokens": 16 * value}
        case "[trainer] model, as a table", _:
            edits["trainer__model"] = {"layers": 1, "heads": 1, "width": 2}
        case "[search] KEY, a range", _:
            edits["search__lr"] = {"low": 1e-4, "high": 1e-1}
        case "[search] KEY, a list", _:
            edits |= {"hparams": {}, "search__batch_tokens": {}}
    edits |= {"__".join([*SECTIONS[heading], key]): value}
    assert parse(text(**edits)).question


@pytest.mark.parametrize(("key", "cells"), sections()[HYPERPARAMETERS].items())
def test_every_example_of_a_hyperparameter_is_legal(key: str, cells: list[str]) -> None:
    ((name, value),) = tomllib.loads(cells[-1].strip("`")).items()
    assert name == key
    assert RULES[key].problem(value) is None
