"""`check`, `run` and `confirm`: results on stdout, progress on stderr, exit code 0."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from hpstudy import load
from hpstudy.analysis.numbers import plain, short
from tests.helpers.command_line import hpstudy, run_python
from tests.helpers.random_studies import Tables, studies
from tests.helpers.study_files import rendered

BATCH = 256  # tokens, of the tiny study
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def test_check_prints_space_baseline_departures_and_cost_and_writes_no_file(tiny_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny_file(replace={"low = 1e-4": "low = 1e-3"})  # GPT-3's 6e-4 is outside
    result = hpstudy("check", path, "--trials", 7)
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()]
    assert ["lr", "log", "0.001", "to", "0.03", "0.0006"] in rows
    assert ["beta2", "log", "of", "1", "-", "value", "0.9", "to", "0.999", "0.95"] in rows
    # warm-up: 10 steps of 20
    sentence = (
        "The baseline is GPT-3's except for warmup_fraction 0.5 of the run's tokens (GPT-3: 0.00125), batch_tokens 256 "
        "tokens (GPT-3: 524,288)."
    )
    assert sentence in " ".join(result.out.split())
    # vocabulary 256 x 16, positions 16 x 16, block 12 x 16^2 + 13 x 16, last norm 2 x 16
    assert f"{256 * 16 + 16 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16:,} parameters" in result.out
    # 7 trials and the baseline, 5,120 / 256 steps each
    assert "cost     8 runs of 20 steps, 40,960 tokens in all, about " in result.out
    assert "tok/s" in result.out
    assert " on 2 workers" in result.out or " on one worker" in result.out  # [budget] parallel is 2
    assert result.err.startswith("warning: [search] lr: no trial can have the baseline's value")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=SLOW)
@given(studies(tiny=True))
def test_check_accepts_any_valid_study(tmp_path: Path, data: Tables) -> None:
    path = tmp_path / "any.toml"
    path.write_text(rendered(data), encoding="utf-8")
    result = hpstudy("check", path, "--device", "cpu")
    assert result.code == 0, (result, rendered(data))
    assert f"any: {data['question'].split()[0]}" in result.out
    assert all(line.startswith("warning: ") for line in result.err.splitlines())
    assert "cost     " in result.out


def figures(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of a run, its hyperparameters and its result."""
    header, result = (json.loads((folder / name).read_text()) for name in ("header.json", "result.json"))
    return folder.name, header["run"]["hparams"], result


def test_run_prints_baseline_and_best_trial_as_the_store_has_them(finished) -> None:
    assert finished.result.code == 0
    (_, theirs, baseline), *others = [figures(path) for path in sorted((finished.runs / "tiny").glob("search-*"))]
    _, ours, best = min(others, key=lambda run: run[2]["val_loss"])
    losses = [result["val_loss"] for result in (baseline, best)]
    rows = [line.split() for line in finished.result.out.splitlines()]
    minus = f"{losses[1] - losses[0]:+.3f}".replace("-", "−")
    assert ["val", "loss", *(f"{loss:.3f}" for loss in losses), minus] in rows
    assert ["lr", "0.0006", f"{ours['lr']:.4g}", f"×{ours['lr'] / theirs['lr']:.2g}"] in rows
    halflives = [short(BATCH * math.log(0.5) / math.log(hparams["beta2"])) for hparams in (theirs, ours)]
    assert ["beta2", "0.95", plain(ours["beta2"]), "half-life", halflives[0], "→", halflives[1], "tokens"] in rows


def test_run_prints_where_everything_is_and_what_comes_next(finished) -> None:
    lines = finished.result.out.splitlines()
    page, wandb, following, *advice = lines[next(n for n, line in enumerate(lines) if line.startswith("    report ")) :]
    assert page.split() == ["report", str(finished.runs / "tiny" / "report" / "index.html")]
    assert "· No verdict: it takes 3 fresh seeds" in finished.result.out
    assert wandb.split(maxsplit=1) == ["W&B", f"offline, 5 runs: hpstudy sync tiny --runs {finished.runs}"]
    assert len(list((finished.runs / "tiny" / "wandb").glob("offline-run-*"))) == 5
    assert following.split()[:4] == ["next", "hpstudy", "run", str(finished.path)]
    said = " ".join(line.strip() for line in advice)
    assert said.startswith("nothing is compared without fresh seeds; set `seeds = [101, 102, 103, 104, 105]`")


def test_run_prints_progress_to_stderr_only(finished) -> None:
    out, err = finished.result.out, finished.result.err
    assert "tiny: Does the smallest study there is run?" in err
    assert "search 1/5  search-000" in err
    assert "search-0000 (baseline): val loss" in err
    assert "search 5/5" in err
    assert "5/5" not in out
    assert "\x1b" not in out + err


def test_an_import_that_fails_while_the_process_ends_is_silent() -> None:
    program = """
import sys
from threading import Thread
from hpstudy.cli.study_commands import import_ahead
sys.modules["hpstudy.report"] = None  # makes the import fail
Thread(target=import_ahead, args=[None]).start()
"""
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_run_and_confirm_end_stdout_with_one_json_object(tiny_file, tmp_path: Path) -> None:
    few, runs = {"trials = 5": "trials = 2"}, tmp_path / "runs"
    flags = ("--runs", runs, "--device", "cpu", "--wandb", "disabled", "--workers", 1, "--json")
    ran = hpstudy("run", tiny_file(replace=few), *flags)
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    found = json.loads(ran.out)
    known = json.loads(hpstudy("status", "tiny", "--runs", runs, "--json").out)
    given = " --device cpu --wandb disabled --workers 1"  # the run's own flags are repeated
    assert found["next"]["command"] == known["next"]["command"] + given
    assert found | {"next": None} == known | {"next": None}
    assert (found["stage"], found["next"]["step"], found["trials"]["ended"]) == ("done", "more seeds", 2)
    assert Path(found["report"]).exists()
    assert "search 2/2" in ran.err
    path = tiny_file(replace=few, more="[confirm]\nseeds = [7, 8, 9]")
    confirmed = json.loads(hpstudy("confirm", path, *flags).out)
    assert confirmed["tuned"]["seeds"] == 3


def test_confirm_refuses_before_the_search_is_done(tiny_file, tmp_path: Path) -> None:
    result = hpstudy("confirm", tiny_file(), "--runs", tmp_path / "runs")
    assert result.code == 2
    assert "0 of 5 trials of the search are done" in result.err
    assert not (tmp_path / "runs").exists()


def test_confirm_refuses_a_study_without_fresh_seeds_and_names_the_key(finished) -> None:
    result = hpstudy("confirm", finished.path, "--runs", finished.runs)
    assert (result.code, result.out) == (2, "")
    assert "[confirm] seeds: must hold fresh seeds to confirm on, but is empty" in result.err


def test_seeds_added_to_a_finished_search_are_confirmed_and_noise_and_verdict_shown(tiny_file, tmp_path: Path) -> None:
    runs, few = tmp_path / "runs", {"trials = 5": "trials = 2"}
    flags = ("--runs", runs, "--device", "cpu", "--wandb", "disabled", "--workers", 1)
    begun = tiny_file(replace=few, more="[confirm]\nseeds = []\nspeedup = true")
    assert "No verdict" in hpstudy("run", begun, *flags).out
    path = tiny_file(replace=few, more="[confirm]\nseeds = [7, 8, 9]\nspeedup = true")
    result = hpstudy("confirm", path, *flags)
    assert result.code == 0
    results = load("tiny", runs)
    (c,) = results.verdict().contrasts
    assert f"(p = {c.level:.2g})" in result.out or "(p < 0.0001)" in result.out
    assert "3 seed pairs" in result.out
    assert "confirm 12/12" in result.err
    again = hpstudy("run", path, *flags)
    assert again.out == result.out
    assert "confirm: 12 of 12 are done from an earlier session" in again.err
    assert f"noise    {results.noise}" in hpstudy("status", "tiny", "--runs", runs).out
    checked = hpstudy("check", path, "--runs", runs, "--device", "cpu").out
    assert f"noise    {results.noise}" in checked
    # 2 trials; the baseline and the winner on three seeds, each 20 steps; and the winner at 10 and 15 steps
    assert "cost     14 runs of up to 20 steps, 60,160 tokens in all" in checked
    assert "2 search, 3 baseline, 9 confirm" in checked
