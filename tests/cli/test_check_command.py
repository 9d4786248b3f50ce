"""`check --json`, and what `check` says of evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpstudy.cli.check_command import CHECK
from tests.helpers.command_line import hpstudy

BIG_EVALS = {"evals = 4": "evals = 20", "val_tokens = 512": "val_tokens = 65536"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_json_holds_what_is_searched_the_baseline_and_the_cost(tiny_file) -> None:
    path = tiny_file(replace={"low = 1e-4": "low = 1e-3"})  # GPT-3's 6e-4 is outside
    result = hpstudy("check", path, "--device", "cpu", "--trials", 7, "--json")
    assert (result.code, result.out.count("\n")) == (0, 1)
    found = json.loads(result.out)
    assert list(found) == list(CHECK)
    assert found["space"][0] == {"key": "lr", "low": 1e-3, "high": 3e-2, "scale": "log", "baseline": 6e-4}
    assert found["baseline"]["warmup_fraction"] == 0.5  # 10 steps of 20
    assert [departure["key"] for departure in found["departures"]] == ["warmup_fraction", "batch_tokens"]
    assert found["plan"] == {"search": 7, "baseline": 1}
    assert {key: found["cost"][key] for key in ("runs", "steps", "tokens")} == {
        "runs": 8, "steps": 20, "tokens": 40_960,
    }  # fmt: skip
    assert 1 <= found["cost"]["workers"] <= 2  # [budget] parallel
    assert found["warnings"][0].startswith("[search] lr: no trial can have the baseline's value")
    assert found["noise"] == {"own": None, "similar": None}
    assert not Path("runs").exists()


def test_evaluation_that_takes_most_of_the_time_is_said_with_its_remedy(tiny_file) -> None:
    result = hpstudy("check", tiny_file(replace=BIG_EVALS), "--device", "cpu")
    assert result.code == 0
    assert "evaluation takes 9" in result.out  # 20 evaluations of 65,536 tokens in a run of 5,120
    assert "`evals = 5 and val_tokens = 8192` in [trainer] would make it " in result.out


def test_a_warning_comes_last(tiny_file) -> None:
    result = hpstudy("check", tiny_file(replace={"low = 1e-4": "low = 1e-3"}), "--device", "cpu")
    assert result.err.splitlines()[-1].startswith("warning: [search] lr")
    order = [result.out.index(part) for part in ("searched", "The baseline is", "speed  ", "cost  ")]
    assert order == sorted(order)


def test_the_trials_that_published_rules_propose_are_said_with_what_was_clipped(tiny_file) -> None:
    """Of five trials a rule has number 1; Step Law's lr for 3,312 weights is above the range."""
    path = tiny_file(replace={"format = 1": "format = 4"})
    result = hpstudy("check", path, "--device", "cpu")
    assert result.code == 0
    lines = result.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("rules"))
    assert [line.strip() for line in lines[place : place + 5]] == [
        "rules    trial 1, combined: lr 0.03, beta2 0.9",
        "lr is 0.03, the end of the range: the rule says 0.07617.",
        "beta2 is 0.9, the end of the range: the rule says 0.7071.",
        "step-law was fitted to 60M to 1B weights and 2B to 100B tokens; here are 3.31k weights and 5.12k tokens.",
        "half-life was fitted to 30M to 1.3B weights; here are 3.31k weights.",
    ]
    (rule,) = json.loads(hpstudy("check", path, "--device", "cpu", "--json").out)["rules"]
    assert (rule["trial"], rule["rule"], rule["values"]["lr"]) == (1, "combined", 0.03)
    assert rule["sources"] == ["arXiv:2503.04715", "arXiv:2507.07101"]


def test_an_error_with_json_leaves_stdout_empty() -> None:
    result = hpstudy("check", "nonsense", "--json")
    assert (result.code, result.out) == (2, "")
    assert "no such study" in result.err


def test_a_training_of_several_processes_is_said(tiny_file) -> None:
    path = tiny_file(replace={"evals = 4": "evals = 4\nprocesses = 2", "micro_batch = 16": "micro_batch = 8"})
    result = hpstudy("check", path, "--device", "cpu")
    assert result.code == 0
    assert "  2 processes a training\n" in result.out
