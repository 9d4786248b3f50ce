"""The JSON schema of a study file: it accepts what hpstudy accepts, and no unknown key, wrong type or broken limit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator

from hpstudy.hparams import RULES, SEARCHABLE
from hpstudy.study.json_schema import study_schema
from hpstudy.study.schema import TABLES, StudyFile
from tests.helpers.random_studies import Tables, studies
from tests.helpers.study_files import rendered, text
from tests.study.test_reference import OF_EARLIER_VERSIONS
from tests.study.test_schema import PROBLEMS

SCHEMA = study_schema()
VALIDATOR = Draft7Validator(SCHEMA)
SHIPPED = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
BEYOND_A_SCHEMA = (
    "must be one line",
    '"gpt2:N" needs',
    "must be a finite number",
    "must fit in 64 bits",
    "write 1_000_000_000",  # to JSON 1e9 is a whole number
)


def mistakes(content: str) -> list[str]:
    """What the schema finds wrong in a file."""
    return [error.message for error in VALIDATOR.iter_errors(tomllib.loads(content))]


def test_it_is_a_schema_of_the_draft_that_editors_read() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_it_accepts_every_shipped_study(path: Path) -> None:
    assert mistakes(path.read_text()) == []


@settings(max_examples=60, deadline=None)
@given(studies())
def test_it_accepts_every_valid_study(data: Tables) -> None:
    assert mistakes(rendered(data)) == []


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param(edits, id=sentence[:60])
        for edits, sentence in PROBLEMS
        if not any(words in sentence for words in BEYOND_A_SCHEMA)
    ],
)
def test_it_refuses_what_the_tables_refuse(edits: dict[str, Any]) -> None:
    assert mistakes(text(**edits))


@pytest.mark.parametrize(
    "edits",
    [
        {"hparams__learning_rate": 1e-3},
        {"hparams__beta1": 1.0},
        {"hparams__lr": 0},
        {"hparams__lr": "1e-3"},
        {"hparams__clip_mode": "norm"},
        {"hparams__batch_tokens": 0.5},
        {"baseline__overrides": {"betas": 0.9}},
        {"baseline__overrides": {"micro_batch": "auto"}},
        {"search__lr": {"low": 1e-4, "high": 1e-2, "scale": "log1m"}},
        {"search__batch_tokens": {"low": 1024, "high": 4096}},
        {"search__lr": {"choices": [1e-3]}},
        {"search__momentum": {"choices": [0.8, 0.9]}},
    ],
)
def test_it_refuses_unknown_hyperparameters_and_illegal_values(edits: dict[str, Any]) -> None:
    assert mistakes(text(**edits))


def test_every_key_has_its_meaning() -> None:
    tables = {table.__name__: SCHEMA["$defs"][table.__name__] for table in TABLES.values() if table.__name__ in USED}
    for name, table in tables.items():
        undescribed = {key for key, part in table["properties"].items() if not part.get("description")}
        assert undescribed <= OF_EARLIER_VERSIONS, name
    for section in ("hparams", "search"):
        properties = SCHEMA["properties"][section]["properties"]
        assert list(properties) == list(SEARCHABLE if section == "search" else RULES)
        assert all(properties[key]["description"].startswith(RULES[key].doc) for key in RULES)
    assert (
        SCHEMA["properties"]["search"]["properties"]["beta2"]["anyOf"][0]["properties"]["scale"]["default"] == "log1m"
    )


USED = {table.__name__ for name, table in TABLES.items() if name not in ("range", "choices")}


def test_it_names_every_section() -> None:
    assert set(SCHEMA["properties"]) == {*StudyFile.model_fields, "ladder"}
