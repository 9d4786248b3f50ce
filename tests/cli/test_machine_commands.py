"""`doctor` and `bench`: results on stdout."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.cli import machine_commands
from hpstudy.running.bench import QUICK, SETTINGS
from tests.helpers.command_line import hpstudy
from tests.helpers.tiny import TINY_SETTING


def test_doctor_finds_what_a_study_needs(tmp_path: Path) -> None:
    result = hpstudy("doctor", "--device", "cpu", "--runs", tmp_path / "runs")
    assert result.code == 0, result
    assert "missing" not in result.out
    for what in ("packages", "cores", "training", "W&B", "cache folder", "runs folder"):
        assert what in result.out
    assert not (tmp_path / "runs").exists()


def test_bench_prints_a_row_per_model_and_the_shares_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [setting.name for setting in QUICK] == ["gpt-2x64", "gpt-4x128", "gpt-6x256"]
    monkeypatch.setattr(machine_commands, "QUICK", [TINY_SETTING, replace(TINY_SETTING, name="tiny-too")])
    result = hpstudy("bench", "--quick", "--device", "cpu")
    assert result.code == 0, result.err
    machine, header, *rows, last = filter(None, result.out.splitlines())
    rows, shares = rows[:2], rows[2:]
    assert re.fullmatch(r".+, (bf16|fp32), 1 thread", machine)
    assert header.split() == ["model", "tok/s", "MFU", "limit", "GFLOP/s", "peak", "GiB", "cold", "start", "s"]
    assert [row.split()[0] for row in rows] == ["tiny", "tiny-too"]
    assert all("%" in row for row in rows)
    assert shares[0].split() == ["share", "of", "a", "step", "tiny", "tiny-too"]
    assert {"matrix products", "attention", "cross-entropy"} <= {row.split("  ")[0] for row in shares}
    for column in (-2, -1):
        assert sum(float(row.split()[column].rstrip("%")) for row in shares[1:]) == pytest.approx(100, abs=1)
    assert last == "the same numbers to the last bit when trained again: yes"
    assert result.err.splitlines() == ["measuring tiny", "measuring tiny-too"]


def test_bench_refuses_an_unknown_model_and_lists_the_known_ones() -> None:
    result = hpstudy("bench", "--preset", "gpt-4")
    known = ", ".join(setting.name for setting in SETTINGS)
    assert result == (2, "", f"--preset gpt-4: must be one of {known}\n")


def test_bench_names_the_flag_that_this_machine_cannot_meet() -> None:
    result = hpstudy("bench", "--quick", "--device", "cpu", "--gpus", 2)
    problem = (
        "--gpus 2: a training takes 2 CUDA GPUs, but would run on the CPU; run it where they are, or use --processes 2 "
        "instead"
    )
    assert (result.code, result.out, result.err.splitlines()[-1]) == (2, "", problem)
