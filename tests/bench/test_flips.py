"""No byte that is changed in a finished study gives another answer or a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.faults import run_without_faults
from tests.bench.flips import ENDS, flip_bytes
from tests.helpers.command_line import contents


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished study."""
    return run_without_faults(tmp_path_factory.mktemp("flips")).root


def test_a_changed_byte_gives_the_same_answer_or_is_named(study: Path) -> None:
    ends = flip_bytes(study, 250, seed=1)
    assert {end for _, end in ends} <= set(ENDS[:3])
    assert {file for file, _ in ends} >= {"header.json", "result.json", "steps.jsonl", "study.json", "environment.json"}


def test_the_bytes_are_as_before_afterwards(study: Path) -> None:
    before = contents(study)
    flip_bytes(study, 20, seed=2)
    assert contents(study) == before
