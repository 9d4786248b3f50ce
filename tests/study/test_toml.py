"""What is written as TOML is read back as it was."""

from __future__ import annotations

import datetime
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.study import toml
from tests.helpers.random_studies import studies

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@settings(deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_any_values_are_read_back(data: dict[str, Any]) -> None:
    assert tomllib.loads(toml.document(data, ["First line.", "", "Third."])) == data


@settings(deadline=None)
@given(studies())
def test_any_study_file_is_read_back(data: dict[str, Any]) -> None:
    assert tomllib.loads(toml.document(data)) == data


def test_a_file_has_its_heading_its_values_and_then_its_tables() -> None:
    data = {"trainer": {"model": {"layers": 1}, "day": datetime.date(2026, 1, 2)}, "question": "Is it?", "empty": {}}
    assert toml.document(data, ["Written", ""]) == (
        '# Written\n#\nquestion = "Is it?"\n\n[trainer]\nmodel = { layers = 1 }\nday = 2026-01-02\n\n[empty]\n'
    )
