"""The tiny study, run once without interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpstudy.records import StepRecord
from studies import curves, go, trials


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """What the uninterrupted tiny study gave, filled by the first test that runs it."""
    return {}


@pytest.fixture
def uninterrupted(tiny, tmp_path: Path, reference: dict[str, Any]) -> tuple[list[Any], dict[str, list[StepRecord]]]:
    if "trials" not in reference:
        study = tiny()
        store = go(study, tmp_path / "reference")
        reference["trials"], reference["curves"] = trials(study, store), curves(store)
    return reference["trials"], reference["curves"]
