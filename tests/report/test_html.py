"""The page is made of what a study found, stands on its own in a browser, and stays small."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hpstudy
from hpstudy.analysis import results as results_module
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.results import StudyResults
from hpstudy.cli.report_commands import report_page
from hpstudy.errors import MachineError, UserError
from hpstudy.report import results_markdown, write_report
from hpstudy.report.html import coded
from hpstudy.search.importance import Importance
from hpstudy.study import Study, run_command
from tests.bench.scale import write
from tests.helpers.browser import in_a_browser, opened
from tests.helpers.stores import begun, results_of

HOSTILE = "Is <script>alert(1)</script> | **safe** <img src=x onerror=alert(2)>?"
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"

IMPORTANCES = {
    key: Importance(share=share, low=share / 2, high=share + 0.1) for key, share in (("lr", 0.7), ("beta2", 0.3))
}

Build, Tiny = Callable[[Study], StudyResults], Callable[..., Study]
Report = Callable[..., Any]
NUM_FIGURES = 2 + 2 + 1 + 1 + 6  # first screen, panels, importances, best so far, training


def headline(page: str) -> tuple[str, str]:
    """The badge and the sentence of a page."""
    ((badge, sentence),) = re.findall('<h1><span class="badge [a-z]+">(.*?)</span> (.*?)</h1>', page)
    return html.unescape(badge), html.unescape(sentence)


# built from results


def test_both_pages_show_the_verdict_of_the_results(tiny: Tiny, confirmed: Build, report: Report):
    results = confirmed(tiny(more=CONFIRM, replace={"format = 1": 'format = 1\nyes = "better"'}))
    pages, verdict = report(results), results.verdict()
    assert verdict.headline.startswith("Yes: search-0001 is better than the baseline (GPT-3's values except for ")
    assert headline(pages.html) == ("Yes", "Tuned values reach 3.6111 nats where GPT-3's reach 4.0100.")
    assert f"<p>{coded(verdict.headline)}</p>" in pages.html
    assert f"**{verdict.sentence}**".replace("_", r"\_") in html.unescape(pages.markdown).splitlines()


def test_both_pages_show_the_study_and_environment_of_the_results(tiny: Tiny, searched: Build, report: Report):
    results = searched(tiny())
    results.store.write_json("environment.json", {"git_commit": "abc1234", "device_name": "a CPU"})
    pages = report(hpstudy.load(results.name, results.store.root.parent))
    for text in pages:
        assert "git checkout abc1234" in text
        assert f"{run_command(results.store.root)} --trials 10" in text  # as many as its search has
        assert "Does the smallest study there is run?" in text
        assert "a CPU" in text


def test_a_report_and_a_summary_take_the_fresh_runs_the_noise_and_the_verdict_once(
    tiny: Tiny, confirmed: Build, report: Report, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []

    def counted(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: calls.append(name) or compute(*args, **more)

    for name in ("noise", "verdict"):
        monkeypatch.setattr(results_module, name, counted(name, getattr(results_module, name)))
    table = cached_property(counted("fresh runs", FreshRuns.__dict__["table"].func))
    table.__set_name__(FreshRuns, "table")
    monkeypatch.setattr(FreshRuns, "table", table)
    loaded = confirmed(tiny(more=CONFIRM))
    frames = StudyFrames(name=loaded.name, trials=loaded.trials, read_steps=counted("steps", loaded.frames.read_steps))
    results = StudyResults(frames=frames, store=loaded.store)
    report(results)
    results_markdown([results])
    assert sorted(calls) == ["fresh runs", "noise", "steps", "verdict"]


def test_tables_from_wandb_have_no_report(tiny: Tiny, searched: Build, tmp_path: Path):
    online = StudyResults(frames=searched(tiny()).frames, store=None)
    with pytest.raises(UserError, match="W&B holds no study file"):
        write_report(online, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written_is_named(tiny: Tiny, searched: Build, tmp_path: Path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(MachineError, match=r"report/report\.md: cannot be written"):
        write_report(searched(tiny()), tmp_path / "report")


@pytest.mark.parametrize("losses", [[], [float("nan")], [4.0], [4.0, float("nan")]])
def test_a_study_with_the_fewest_runs_has_a_report(
    tiny: Tiny, write_run: Callable[..., None], report: Report, tmp_path: Path, losses: list[float]
):
    study = tiny()
    begun(tmp_path, text=study.path.read_text(), values=study.resolved())
    for trial, loss in enumerate(losses):
        write_run(study, f"search-{trial:04d}", "search", loss, trial=trial)
    assert "Validation loss" in report(hpstudy.load(study.name, tmp_path / "runs")).html


# what a page shows


@in_a_browser
def test_a_browser_shows_verdict_figures_and_table_without_network_or_error(
    tiny: Tiny, confirmed: Build, report: Report, tmp_path: Path
):
    results = confirmed(tiny(more=CONFIRM))
    page = report(results, importances=IMPORTANCES).html
    dom = opened(tmp_path / "report" / "index.html")
    verdict = results.verdict()
    assert html.escape(verdict.headline, quote=False) in dom.replace("&#39;", "'")
    assert html.escape(verdict.sentence.removeprefix(verdict.headline).strip(), quote=False) in dom
    num_figures = page.count('<div class="plot"')
    assert num_figures == NUM_FIGURES
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == num_figures
    assert re.search(r"4\.0100 ± 0\.0058 \(3\)", dom)
    assert "://" not in re.sub(r"<script.*?</script>|http://www.w3.org/", "", dom, flags=re.DOTALL)


def test_a_page_has_every_figure(tiny: Tiny, confirmed: Build, report: Report):
    page = report(confirmed(tiny(more=CONFIRM)), importances=IMPORTANCES).html
    assert page.count('<div class="plot"') == NUM_FIGURES
    assert page.count('<svg class="strip"') == 2
    assert page.count('id="parallel"') == 1


@in_a_browser
def test_a_hostile_question_is_shown_and_never_run(tiny: Tiny, confirmed: Build, report: Report, tmp_path: Path):
    report(confirmed(tiny(replace={"Does the smallest study there is run?": HOSTILE}, more=CONFIRM)))
    dom = opened(tmp_path / "report" / "index.html")
    assert html.escape(HOSTILE, quote=False) in dom
    assert "<script>alert" not in dom
    assert "<img" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def test_a_hostile_question_is_escaped(tiny: Tiny, searched: Build, report: Report):
    page = report(searched(tiny(replace={"Does the smallest study there is run?": HOSTILE}))).html
    assert html.escape(HOSTILE) in page
    assert "<script>alert" not in page


def test_a_figure_cannot_end_the_element_that_holds_its_data(tiny: Tiny, searched: Build, report: Report):
    page = report(searched(tiny()), importances={"</script><b>": Importance(share=1.0, low=0.9, high=1.0)}).html
    assert "</script><b>" not in page


def test_without_fresh_seeds_the_headline_names_no_winner(tiny: Tiny, searched: Build, report: Report):
    results = searched(tiny(more=CONFIRM))
    pages = report(results)
    badge, sentence = headline(pages.html)
    assert badge == "No verdict yet"
    assert sentence == "The best trial so far reaches 3.600 nats, GPT-3's values 4.000; one seed each, no verdict."
    assert coded(results.verdict().sentence) in pages.html
    for text in pages:
        assert "(one seed)" in text
        assert "Difference to the baseline" not in text


def test_two_objectives_have_a_front(tiny: Tiny, searched: Build, report: Report):
    more = '[objective]\nmetric = ["val/loss", "train/tok_per_sec"]\n'
    assert "Loss against speed" in report(searched(tiny(more=more))).html


# its size


def test_a_large_study_makes_a_small_page(tiny: Tiny, searched: Build, report: Report, tmp_path: Path):
    """200 trials of 2,000 steps; drawn are at most 300 points a curve and 60 trials."""
    few = searched(tiny())
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
    assert len(report(results_of(few.study, frames, tmp_path / "large")).html) < 7_000_000


@pytest.mark.slow
def test_a_report_of_100_trials_of_10_000_steps_is_small_and_quick(tmp_path: Path):
    write(tmp_path, num_runs=100, num_steps=10_000)
    begin = time.monotonic()
    page = report_page(hpstudy.load("tiny", tmp_path))
    assert time.monotonic() - begin < 30
    assert page.stat().st_size < 10e6
