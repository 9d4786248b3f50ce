"""`results` prints what studies found as Markdown, from the runs themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
Tiny, Build = Callable[..., Study], Callable[[Study], Any]


@pytest.fixture
def results(hpstudy: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda *names: hpstudy("results", *names, "--runs", tmp_path / "runs")


def test_each_study_has_a_row_and_a_part_with_its_verdict_and_how_to_repeat_it(
    results, tiny, confirmed, searched, tmp_path: Path
):
    sure = tiny("sure", more=CONFIRM, replace={"format = 1": 'format = 1\nyes = "better"'})
    confirmed(sure)
    searched(tiny("unsure", replace={"smallest study": "second <b>smallest</b> study"}))
    here = {"torch": "2.0", "device_name": "a CPU", "cores": 2, "precision": "fp32", "git_commit": "abc"}
    RunStore(tmp_path / "runs" / "sure").write_json("environment.json", {"packages": {"hpstudy": "9.9"}, **here})
    told = results()
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    (row,) = (line for line in lines if line.startswith("| sure |"))
    assert r"| yes | better | -0.3989 \[-0.4016, -0.3961\] |" in row
    (row,) = (line for line in lines if line.startswith("| unsure |"))
    assert row.endswith("| - | - | - |")
    assert "&lt;b&gt;" in row
    assert any(line.startswith("**Yes: search-0001 is better than the baseline") for line in lines)
    assert any(line.startswith("`hpstudy run sure --trials 10`, begun 20") for line in lines)
    assert "commit `abc`, hpstudy 9.9, torch 2.0, optuna ?; a CPU, 2 cores, fp32; 16 runs (" in told.out
    assert "Written by `hpstudy results sure unsure`" in told.out
    assert results("sure").out.count("\n## ") == 1


def test_unknown_names_and_an_empty_folder_are_told(results):
    told = results()
    assert (told.code, told.out) == (2, "")
    assert "no study has begun there" in told.err
    assert "nonsense" in results("nonsense").err
