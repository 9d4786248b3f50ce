"""A report of a study, as both of its pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hpstudy
from hpstudy.analysis.results import StudyResults
from hpstudy.report import write_report
from tests.helpers.gallery import GALLERY
from tests.helpers.made_up import train


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StudyResults]:
    """A study of `tests.helpers.gallery` by name, its store written once a session."""
    runs = tmp_path_factory.mktemp("gallery")

    @cache
    def get(name: str) -> StudyResults:
        train(name, GALLERY[name], runs)
        return hpstudy.load(name, runs)

    return get


class Pages(NamedTuple):
    """What `write_report` wrote."""

    html: str
    markdown: str


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Pages]:
    """Writes the report into the folder "report" and reads it."""

    def write(results: StudyResults, **more: Any) -> Pages:
        page = write_report(results, tmp_path / "report", **more)
        assert page == tmp_path / "report" / "index.html"
        return Pages(html=page.read_text(), markdown=page.with_name("report.md").read_text())

    return write
