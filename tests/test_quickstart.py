"""The first study that a new user runs, as it is shipped: it ends in time, beats the baseline, and survives Ctrl-C."""

from __future__ import annotations

import html
import re
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from hpstudy.analysis.results import load
from hpstudy.records import StepRecord
from hpstudy.search import Search
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore
from tests.helpers.browser import in_a_browser, opened
from tests.helpers.training import timeless

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "hpstudy")


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(str(ROOT / "studies" / "quickstart.toml"))


def start(runs: Path) -> subprocess.Popen[str]:
    command = [PROGRAM, "run", "quickstart", "--runs", str(runs), "--wandb", "offline"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def curves(runs: Path) -> dict[str, list[StepRecord]]:
    return {view.run_id: [timeless(r) for r in view.records()] for view in RunStore(runs / "quickstart").runs()}


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
    losses = [trial.objectives[0] for trial in trials if trial.objectives]
    assert len(losses) >= 8
    assert set(study.space) == {"lr", "beta1", "beta2", "weight_decay"}
    assert trials[0].values == pytest.approx(study.baseline_proposal())
    assert min(losses) < losses[0] - 0.1  # far beyond the noise between seeds
    assert "✗ No: the tuned values are better (p = " in out


@in_a_browser
def test_a_browser_shows_quickstarts_report(uninterrupted):
    results = load("quickstart", uninterrupted)
    page = uninterrupted / "quickstart" / "report" / "index.html"
    dom = html.unescape(opened(page))
    verdict = results.verdict()
    best = verdict.contrasts[0]
    answer = f"Tuned values reach {best.mean:.3f} nats where GPT-3's reach {best.baseline_mean:.3f}."
    assert f'<h1><span class="badge bad">No</span> {answer}</h1>' in dom
    assert verdict.headline in dom
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == page.read_text().count('<div class="plot"')
    assert f"<td>{best.mean:.3f} ± {best.se:.3f} ({best.n})</td>" in dom


def test_an_interrupted_quickstart_has_the_trials_of_an_uninterrupted_one_when_it_is_run_again(
    study, uninterrupted, tmp_path
):
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
