"""The first thing a new user runs, as it is shipped: it ends in time, beats the baseline, survives Ctrl-C."""

from __future__ import annotations

import html
import re
import signal
import subprocess
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpstudy.analysis.results import load
from hpstudy.records import StepRecord
from hpstudy.search import Search
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from tests.report.test_report import in_a_browser, opened

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "hpstudy")
TIMES: dict[str, Any] = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("quickstart", ROOT / "studies")


def start(runs: Path) -> subprocess.Popen[str]:
    command = [PROGRAM, "run", "quickstart", "--runs", str(runs), "--wandb", "offline"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def curves(runs: Path) -> dict[str, list[StepRecord]]:
    return {v.run_id: [replace(r, **TIMES) for r in v.records()] for v in RunStore(runs / "quickstart").runs()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


def test_quickstart_ends_within_eight_minutes_and_beats_the_baseline(study, uninterrupted):
    begin = time.monotonic()
    process = start(uninterrupted)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert time.monotonic() - begin < 480
    trials = Search(study, uninterrupted / "quickstart" / "optuna.journal", read_only=True).trials()
    told = [trial.objectives[0] for trial in trials if trial.objectives]
    assert len(told) >= 8
    assert set(study.space) == {"lr", "beta1", "beta2", "weight_decay"}
    assert trials[0].values == pytest.approx(study.baseline_proposal())
    assert min(told) < told[0] - 0.1  # far beyond the noise between seeds
    assert "baseline" in out


@in_a_browser
def test_a_browser_shows_quickstarts_report(uninterrupted, tmp_path):
    results = load("quickstart", uninterrupted)
    page = uninterrupted / "quickstart" / "report" / "index.html"
    dom = html.unescape(opened(page, tmp_path / "profile"))
    told = results.verdict()
    assert f"<h1>{told.headline}</h1>" in dom
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == page.read_text().count('<div class="plot"')
    best = told.contrasts[0]
    assert f"<td>{best.mean:.4f} ± {best.se:.4f} ({best.n})</td>" in dom


def test_an_interrupted_quickstart_run_again_has_the_trials_of_an_uninterrupted_one(study, uninterrupted, tmp_path):
    for seconds in (12, 9):
        process = start(tmp_path)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False)
    process = start(tmp_path)
    assert process.wait() == 0
    process.communicate()
    first, second = (
        Search(study, runs / "quickstart" / "optuna.journal", read_only=True).trials()
        for runs in (uninterrupted, tmp_path)
    )
    assert first == second
    assert curves(uninterrupted) == curves(tmp_path)
