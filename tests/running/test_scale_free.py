"""A study in scale-free coordinates from its file to its report, interrupted on the way."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hpstudy.analysis.results import load
from hpstudy.cli.app import app
from hpstudy.coordinates import step_law_lr
from hpstudy.report import write_report
from hpstudy.search import Search
from tests.helpers.running import curves, interrupt, run_here, trials

COORDINATES = ["lr_over_rule", "beta2_halflife", "weight_decay_timescale"]
SCALE_FREE = {
    "format = 1": "format = 4",
    "trials = 5": "trials = 3",
    'lr = { low = 1e-4, high = 3e-2, scale = "log" }': "lr_over_rule = { low = 0.01, high = 2 }",
    'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': "beta2_halflife = { low = 0.01, high = 0.5 }\n"
    "weight_decay_timescale = { choices = [0.1, 1, 10] }",
}
MORE = "[confirm]\nseeds = [11]\nspeedup = true"


def test_a_study_in_coordinates_resumes_to_the_same_trials_and_is_reported_and_exported(tiny, tmp_path: Path):
    study = tiny(replace=SCALE_FREE, more=MORE)
    whole = run_here(study, tmp_path / "whole")
    interrupt(study, tmp_path / "runs", "search-0002", 10)
    resumed = run_here(study, tmp_path / "runs")
    assert trials(study, resumed) == trials(study, whole)
    assert curves(resumed) == curves(whole)

    results = load("tiny", tmp_path / "runs")
    found = results.trials.set_index("run_id")
    assert list(found.columns[-3:]) == COORDINATES
    proposed = Search(study, resumed.root / "optuna.journal", read_only=True).trials()
    for trial in proposed:
        row = found.loc[f"search-{trial.number:04d}"]
        assert row[COORDINATES].to_dict() == pytest.approx(trial.values)
        assert row["lr"] == trial.values["lr_over_rule"] * step_law_lr(study.spec.model.num_weights, 5120)
        assert row["beta2_halflife_tokens"] == pytest.approx(trial.values["beta2_halflife"] * 5120)
        steps = trial.values["weight_decay_timescale"] * 20  # of 256 tokens
        assert row["decay_timescale_steps"] == pytest.approx(steps)
    winner = next(str(run) for run in found["of"].dropna())
    shorter = found[(found["of"] == winner) & (found["fraction"] < 1)]
    assert shorter[COORDINATES].to_numpy() == pytest.approx(found.loc[[winner] * len(shorter), COORDINATES].to_numpy())
    assert (shorter["beta2_halflife_tokens"] < found.loc[winner, "beta2_halflife_tokens"]).all()
    assert found.loc[study.baseline_run_id, "phase"] == "baseline"

    assert results.tuned is not None
    assert "lr = " in results.tuned.as_toml(study)
    assert not any(key in results.tuned.as_toml(study) for key in COORDINATES)
    page = write_report(results, tmp_path / "page").read_text()
    assert all(key in page for key in COORDINATES)
    exported = CliRunner().invoke(app, ["export", "tiny", "--runs", str(tmp_path / "runs"), "--format", "csv"])
    assert exported.exit_code == 0, exported.output
    table = pd.read_csv(resumed.root / "export" / "trials.csv")
    assert list(table.columns[-3:]) == COORDINATES
    assert table[COORDINATES].notna().all(axis=None)


def test_check_shows_the_coordinates_and_that_the_baseline_is_no_trial(tiny_file, tmp_path: Path):
    path = tiny_file(replace=SCALE_FREE)
    checked = CliRunner().invoke(app, ["check", str(path), "--runs", str(tmp_path / "runs"), "--device", "cpu"])
    assert checked.exit_code == 0, checked.output
    assert "lr_over_rule" in checked.output
    assert "is not trial 0" in checked.output.replace("\n", " ")
