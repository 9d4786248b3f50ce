"""`compare` sets studies side by side: what fresh seeds say, what one seed cannot, and where no scale is shared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpstudy.study import Study
from tests.report.test_report import in_a_browser, opened

CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
Tiny, Build = Callable[..., Study], Callable[[Study], Any]


@pytest.fixture
def compare(hpstudy: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda *names: hpstudy("compare", *names, "--runs", tmp_path / "runs")


@pytest.fixture
def two(tiny: Tiny, confirmed: Build, searched: Build) -> None:
    """One study with a verdict and one without, on the same text."""
    confirmed(tiny("sure", more=CONFIRM))
    searched(tiny("unsure", replace={"smallest study": "second <b>smallest</b> study"}))


@pytest.mark.usefixtures("two")
def test_a_verdict_stands_beside_a_study_without_one(compare):
    told = compare("sure", "unsure")
    assert (told.code, told.err) == (0, "")
    sure, unsure = (re.search(rf"^{name} .*\n.*", told.out, re.MULTILINE)[0] for name in ("sure", "unsure"))
    baseline, winner = 4 + np.arange(3) / 100, 3.6 + np.arange(3) / 90
    test = stats.ttest_rel(winner, baseline)
    low, high = test.confidence_interval()
    for cell in (
        f"{baseline.mean():.4f}",
        f"± {stats.sem(baseline):.4f} (3)",
        f"{winner.mean():.4f}",
        f"± {stats.sem(winner):.4f} (3)",
        f"{(winner - baseline).mean():+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        "search-0001",
        "better",
        "25.6k",
        "5.12k",
    ):
        assert cell in sure
    for cell in ("4.0000 (1)", "search-0001", "3.6000 (1)", "one seed each,"):
        assert cell in unsure
    assert "better" not in unsure
    assert "sure: Does the smallest study there is run?\n" in told.out
    assert "not comparable" not in told.out


@pytest.mark.usefixtures("two")
def test_the_page_lies_where_stdout_says_and_holds_its_figures(compare):
    page = Path(compare("sure", "unsure").out.splitlines()[-1])
    text = page.read_text()
    assert text.count('<div class="plot"') == 3  # the differences, and the curves of each study
    assert "<h1>sure: better; unsure: one seed each, no verdict</h1>" in text
    assert "<b>smallest" not in text


@pytest.mark.usefixtures("two")
@in_a_browser
def test_a_browser_draws_the_page_without_network_or_error(compare, tmp_path: Path):
    dom = opened(Path(compare("sure", "unsure").out.splitlines()[-1]), tmp_path / "profile")
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == 3


def test_losses_of_other_tokenizers_are_said_to_have_no_common_scale(compare, tiny: Tiny, searched: Build):
    searched(tiny("ranks"))
    searched(tiny("bytes", replace={'"gpt2:256"': '"bytes"'}))
    told = compare("ranks", "bytes")
    sentence = (
        "Losses and their differences are not comparable between these studies: tokenizer is gpt2:256 in ranks; bytes "
        "in bytes."
    )
    assert sentence in " ".join(told.out.split())
    assert sentence in Path(told.out.splitlines()[-1]).read_text()


@pytest.mark.usefixtures("two")
def test_unknown_names_are_all_told_at_once(compare):
    told = compare("sure", "sre", "nonsense", "not a name")
    assert (told.code, told.out) == (2, "")
    first, second, third = told.err.splitlines()
    assert 'no study "sre"' in first
    assert 'did you mean "sure"' in first
    assert 'no study "nonsense"' in second
    assert 'study "not a name"' in third


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("names", [["sure"], ["sure", "sure"], ["sure", "elsewhere/sure.toml"]])
def test_one_study_is_not_compared_with_itself(compare, names: list[str]):
    told = compare(*names)
    assert told.code == 2
    assert "takes two studies or more; `hpstudy report sure` shows one" in told.err


def test_studies_without_a_finished_run_have_a_row(compare, tiny: Tiny, write_run):
    for name in ("first", "second"):
        write_run(tiny(name), "search-0000", "search", float("nan"), trial=0)
    told = compare("first", "second")
    assert told.code == 0
    assert told.out.count("one seed each,") == 2
