"""A ladder's page, Markdown, figures and screen show what the ladder has found, in any state."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.ladder_trends import gain_sentence, slopes
from hpstudy.analysis.numbers import rough
from hpstudy.data.corpus import corpus_of
from hpstudy.report.html import coded
from hpstudy.report.ladder import ladder_figures, ladder_screen, write_ladder_report
from hpstudy.report.style import apart
from tests.helpers.browser import in_a_browser, opened
from tests.helpers.made_up_ladder import BEST, TEXT, best_value, made_up_ladder, stable_lr

KEYS = ("lr", "weight_decay_timescale", "beta2_halflife")
Pages = tuple[str, str]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> LadderResults:
    """A ladder of four rungs whose check has ended."""
    return made_up_ladder(tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def written(found: LadderResults) -> Pages:
    """Its page and its Markdown."""
    return pages(found)


def pages(results: LadderResults) -> Pages:
    """The page and its Markdown."""
    page = write_ladder_report(results, results.root / "report")
    assert page == results.root / "report" / "index.html"
    return page.read_text(), page.with_name("report.md").read_text()


def plain_text(text: str) -> str:
    """Markdown or HTML without escapes and tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\\", "")


def test_the_known_laws_are_within_the_shown_intervals(found: LadderResults):
    for key in BEST:
        for rung in found.rungs:
            shown = rung.estimate(key)
            assert shown is not None
            if key in KEYS:
                assert shown.value == pytest.approx(best_value(key, rung.size.weights), rel=0.35)
        if key in KEYS:
            assert found.estimate(key, found.ladder.target).holds(best_value(key, found.ladder.target.weights))
    assert found.largest_lr(found.ladder.check).holds(stable_lr(found.ladder.check.weights))


def test_the_page_begins_with_the_answer_and_its_badge(found: LadderResults, written: Pages):
    page, markdown = written
    ((tone, badge, sentence),) = re.findall('<h1><span class="badge ([a-z]+)">(.*?)</span> (.*?)</h1>', page)
    assert (found.answer, tone, badge) == ("holds", "good", "Yes")
    assert html.unescape(sentence).startswith(
        "The prediction holds at 6x256: its loss less that of a search of 16 trials is "
    )
    assert "hpstudy run made-up-target" in page
    assert found.sentences()[1].startswith("Likewise copied from 2x64: ")
    for said in found.sentences()[1:]:
        assert coded(said) in page
        assert said in plain_text(markdown)


def test_both_pages_hold_the_same_numbers(found: LadderResults, written: Pages):
    check, target = found.ladder.check, found.ladder.target
    for text in map(plain_text, written):
        for rung in (*found.rungs, found.check):
            for key in found.keys:
                assert str(rung.estimate(key)) in text
        for key in found.keys:
            assert str(found.estimate(key, target)) in text
        for regret in found.regrets[1:]:
            assert str(regret) in text
            assert f"{regret.loss:.4f}" in text
        for said in (gain_sentence(found), found.factors(check), found.factors(target), *(s for _, s in slopes(found))):
            assert said in text
        assert "studies/made-up-target.toml" in text


def test_each_rung_links_to_its_own_report(written: Pages):
    page, markdown = written
    for label, part in (("2x64", "2x64"), ("6x192", "6x192"), ("check 6x256", "check")):
        assert f'<a href="../../made-up-{part}/report/index.html">{label}</a>' in page
        assert f"[{label}](../../made-up-{part}/report/index.html)" in markdown


def test_the_rungs_say_how_often_a_run_sees_the_corpus(found: LadderResults, written: Pages):
    first = found.rungs[0]
    train_tokens = corpus_of(first.study.spec).num_train_tokens
    assert first.epochs == pytest.approx(first.size.tokens / train_tokens)
    assert "| epochs |" in written[1]
    assert f"| {rough(first.epochs)} |" in written[1]


@in_a_browser
def test_a_browser_shows_every_figure_without_network_or_error(found: LadderResults):
    page = write_ladder_report(found, found.root / "report")
    dom = opened(page)
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == len(ladder_figures(found)) == 3 + 2 + 1
    assert "://" not in re.sub(r"<script.*?</script>|http://www.w3.org/", "", dom, flags=re.DOTALL)


def test_a_figure_names_its_lines_and_sizes(found: LadderResults):
    figures = ladder_figures(found)
    assert list(figures)[:3] == list(KEYS)
    named = {title: [note.text for note in figure.plot.layout.annotations] for title, figure in figures.items()}
    assert {"2x64", "check <b>6x256</b>", "target <b>125m</b>"} <= set(named["lr"])
    assert {"GPT-3", "unstable", "step-law", "sqrt-batch", "batch-0.3"} <= set(named["lr"])
    assert "power-lines" in named["weight_decay_timescale"]
    assert "GPT-3 ↑" in named["weight_decay_timescale"]  # its timescale is hundreds of runs
    assert "half-life" in named["beta2_halflife"]


def test_a_rung_without_an_optimum_inside_the_range_is_hollow(tmp_path: Path):
    narrow = TEXT.replace("low = 0.004, high = 0.4", "low = 0.2, high = 0.4")  # the best values lie below
    results = made_up_ladder(tmp_path, rungs=1, checked=False, text=narrow)
    points = [t for t in ladder_figures(results)["beta2_halflife"].plot.data if t.error_y.array is not None]
    assert [point.marker.color for point in points] == ["#ffffff"]
    assert "beta2_halflife: the trials of 2x64 show no optimum inside the range." in plain_text(pages(results)[1])


def test_the_screen_fits_a_terminal(found: LadderResults):
    lines = ladder_screen(found, 80).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines[:-2])) <= 80
    text = " ".join(" ".join(lines).split())
    assert found.verdict in text
    assert lines[-2].split() == ["target", "studies/made-up-target.toml"]
    for regret in found.regrets[1:]:
        assert str(regret) in text


@pytest.mark.parametrize(("rungs", "badge"), [(0, "0 of 4 rungs"), (1, "1 of 4 rungs"), (4, "Not checked yet")])
def test_before_the_check_ends_both_say_what_is_done_and_what_comes_next(found: LadderResults, rungs: int, badge: str):
    results = replace(found, rungs=found.rungs[:rungs], check=None, sides={})
    page, markdown = pages(results)
    assert f'<span class="badge open">{badge}</span>' in page
    screen = ladder_screen(results, 80)
    for text in (page, markdown, screen):
        assert f"hpstudy run made-up --runs {found.runs}" in text
    assert badge in screen
    assert ("6x256" in screen) == (rungs > 0)


def test_a_ladder_of_growing_budgets_is_drawn_against_tokens(tmp_path: Path):
    models = 'models               = ["gpt-2x64", "gpt-3x96", "gpt-4x128", "gpt-6x192"]\ntokens_per_parameter = 20\n'
    text = TEXT.replace(models, "tokens = [300_000, 600_000]\n").replace("[32, 28, 24, 20]", "12")
    text = text.replace('check                = "gpt-6x256"', "check_tokens = 2_400_000")
    text = text.replace('target               = "gpt-125m"\n', "").replace(
        "[trainer]\n", '[trainer]\nmodel = "gpt-2x64"\n'
    )
    results = made_up_ladder(tmp_path, rungs=2, checked=False, text=text)
    assert ladder_figures(results)["lr"].plot.layout.xaxis.title.text == "tokens of a run (D)"
    assert "for each tenfold D." in plain_text(pages(results)[1])


def test_labels_stand_apart_within_their_limits():
    draw = np.random.default_rng(0)
    for _ in range(200):
        values = [float(value) for value in draw.uniform(0, 1, 6)]
        places = apart(values, 0.1, (0.0, 1.0))
        assert min(np.diff(sorted(places))) >= 0.1 - 1e-9
        assert min(places) >= -1e-9
        assert max(places) <= 1
        assert np.argsort(places).tolist() == np.argsort(values).tolist()
