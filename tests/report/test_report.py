"""The report says what the verdict says, stands on its own in a browser, and stays small."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpstudy.analysis.frames import StudyFrames, _steps, _trials, load
from hpstudy.analysis.results import load as load_results
from hpstudy.analysis.verdict import verdict
from hpstudy.cli.data_commands import report_page
from hpstudy.report import write_report
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.analysis.scale import write

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "Is <script>alert(1)</script> | **safe** <img src=x onerror=alert(2)>?"
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
Build = Callable[[Study], StudyFrames]
Tiny = Callable[..., Study]


def report(frames: StudyFrames, study: Study, folder: Path, **more: Any) -> tuple[str, str]:
    """Both pages."""
    page = write_report(frames, study, verdict(frames, study), {"git_commit": "abc", "device": "cpu"}, folder, **more)
    assert page == folder / "index.html"
    return page.read_text(), (folder / "report.md").read_text()


def opened(page: Path, profile: Path) -> str:
    """The page's DOM after its scripts ran; nothing may have been said on the console.

    The page's own policy forbids every request and every other script, and the console would tell of one tried.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]
    flags += ["--window-size=1400,9000", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@in_a_browser
def test_a_browser_shows_verdict_figures_and_table_without_network_or_error(tiny: Tiny, confirmed: Build, tmp_path):
    study = tiny(more=CONFIRM)
    frames = confirmed(study)
    page, _ = report(frames, study, tmp_path / "report", importances={"lr": 0.7, "beta2": 0.3})
    dom = opened(tmp_path / "report" / "index.html", tmp_path / "profile")
    assert f"<h1>{html.escape(verdict(frames, study).sentence, quote=False)}</h1>" in dom.replace("&#39;", "'")
    num_figures = page.count('<div class="plot"')
    assert num_figures == 2 + 2 + 2 + 1 + 6  # result, panels, together, best so far, training
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == num_figures
    assert re.search(r"4\.0100 ± 0\.0058 \(3\)", dom)
    assert "://" not in re.sub(r"<script.*?</script>|http://www.w3.org/", "", dom, flags=re.DOTALL)


@in_a_browser
def test_a_hostile_question_is_shown_and_never_run(tiny: Tiny, confirmed: Build, tmp_path: Path):
    study = tiny(replace={"Does the smallest study there is run?": HOSTILE}, more=CONFIRM)
    report(confirmed(study), study, tmp_path / "report")
    dom = opened(tmp_path / "report" / "index.html", tmp_path / "profile")
    assert html.escape(HOSTILE, quote=False) in dom
    assert "<script>alert" not in dom
    assert "<img" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def test_markdown_shows_a_hostile_question_as_text(tiny: Tiny, searched: Build, tmp_path: Path):
    study = tiny(replace={"Does the smallest study there is run?": HOSTILE})
    _, markdown = report(searched(study), study, tmp_path)
    assert "<" not in markdown
    assert r"Is &lt;script&gt;alert(1)&lt;/script&gt; \| \*\*safe\*\*" in markdown


def test_a_figure_cannot_end_the_element_its_data_stand_in(tiny: Tiny, searched: Build, tmp_path: Path):
    page, _ = report(searched(study := tiny()), study, tmp_path, importances={"</script><b>": 1.0})
    assert "</script><b>" not in page


def test_without_fresh_seeds_the_headline_names_no_winner(tiny: Tiny, searched: Build, tmp_path: Path):
    study = tiny(more=CONFIRM)
    frames = searched(study)
    page, markdown = report(frames, study, tmp_path)
    (headline,) = re.findall("<h1>(.*?)</h1>", page)
    assert html.unescape(headline) == verdict(frames, study).sentence
    assert "search-0001" not in headline
    for text in (page, markdown):
        assert "(one seed)" in text
        assert "Difference to the baseline" not in text


def test_the_table_tells_means_errors_and_differences_of_the_fresh_seeds(tiny: Tiny, confirmed: Build, tmp_path: Path):
    study = tiny(more=CONFIRM)
    frames = confirmed(study)
    _, markdown = report(frames, study, tmp_path)
    contrast = verdict(frames, study).contrasts[0]
    baseline, candidate = np.array([4.0, 4.01, 4.02]), np.array([3.6, 3.6 + 1 / 90, 3.6 + 2 / 90])
    cells = [f"{a.mean():.4f} ± {a.std(ddof=1) / 3**0.5:.4f} (3)" for a in (baseline, candidate)]
    assert f"| val loss (nats) | {cells[0]} | {cells[1]} |" in markdown
    assert f"{(candidate - baseline).mean():+.4f} \\[{contrast.low:+.4f}, {contrast.high:+.4f}\\]" in markdown


def test_lost_trials_are_listed_with_their_values(tiny: Tiny, searched: Build, tmp_path: Path):
    _, markdown = report(frames := searched(study := tiny()), study, tmp_path)
    lr = frames.trials.set_index("run_id").loc["search-0007", "lr"]
    assert f"| search-0007 | diverged | 5.12k | {lr:.4g} |" in markdown


@pytest.mark.parametrize("losses", [[], [float("nan")], [4.0], [4.0, float("nan")]])
def test_the_least_of_a_study_has_a_report(tiny: Tiny, write_run, tmp_path: Path, losses: list[float]):
    study = tiny()
    for trial, loss in enumerate(losses):
        write_run(study, f"search-{trial:04d}", "search", loss, trial=trial)
    frames = load(study.name, tmp_path / "runs") if losses else _nothing()
    page, _ = report(frames, study, tmp_path / "report")
    assert "Loss against tokens" in page


def _nothing() -> StudyFrames:
    """A study that has begun and has no run yet."""
    return StudyFrames(name="tiny", trials=(trials := _trials([])), read_steps=lambda: _steps(trials, []))


def test_two_objectives_have_a_front(tiny: Tiny, searched: Build, tmp_path: Path):
    more = '[objective]\nmetric = ["val/loss", "train/tok_per_sec"]\n'
    page, _ = report(searched(study := tiny(more=more)), study, tmp_path)
    assert "Loss against speed" in page


def test_a_large_study_makes_a_small_page(tiny: Tiny, searched: Build, tmp_path: Path):
    """200 trials of 2,000 steps; drawn are at most 300 points a curve and 60 trials."""
    few = searched(study := tiny())
    num_runs, num_steps = 200, 2000
    ids = [f"search-{n:04d}" for n in range(num_runs)]
    trials = few.trials.iloc[np.zeros(num_runs, dtype=int)].reset_index(drop=True)
    trials = trials.assign(run_id=pd.Categorical(ids), trial=range(num_runs), val_loss=4 + np.arange(num_runs) / 100)
    steps = few.steps.iloc[np.zeros(num_runs * num_steps, dtype=int)].reset_index(drop=True)
    draw = np.random.default_rng(0)
    count = np.tile(np.arange(1, num_steps + 1), num_runs)
    steps = steps.assign(
        run_id=pd.Categorical(np.repeat(ids, num_steps)),
        tokens=256 * count,
        **{"val/loss": draw.random(len(count)), "val/index": count},
        **{name: draw.random(len(count)) for name in ("train/loss", "train/grad_norm", "train/update_to_weight")},
    )
    frames = StudyFrames(name="tiny", trials=trials, read_steps=lambda: steps)
    page, _ = report(frames, study, tmp_path / "large")
    assert len(page) < 7_000_000


@pytest.mark.slow
def test_a_report_of_100_trials_of_10_000_steps_is_small_and_quick(tmp_path: Path):
    write(tmp_path, num_runs=100, num_steps=10_000)
    begin = time.monotonic()
    page = report_page(load_results("tiny", tmp_path), RunStore(tmp_path / "tiny"))
    assert time.monotonic() - begin < 30
    assert page.stat().st_size < 10e6
