"""`check` on studies that nobody wrote by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.test_study_fuzz import rendered, studies

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=SLOW)
@given(studies(tiny=True))
def test_check_runs_cleanly_on_any_valid_study(hpstudy, tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "any.toml"
    path.write_text(rendered(data), encoding="utf-8")
    told = hpstudy("check", path, "--device", "cpu")
    assert told.code == 0, (told, rendered(data))
    assert f"any: {data['question'].split()[0]}" in told.out
    assert all(line.startswith("warning: ") for line in told.err.splitlines())
    assert "cost     " in told.out
