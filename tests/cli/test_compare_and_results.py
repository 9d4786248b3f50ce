"""`compare` and `results`: several studies in one table, on a page, and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpstudy.analysis.numbers import plain, with_sign
from hpstudy.analysis.results import load
from hpstudy.analysis.together import cautions
from hpstudy.cli.layout import fits
from hpstudy.cli.report_commands import _columns
from hpstudy.report import finding, side_by_side, write_side_by_side
from hpstudy.report.compare import IN_SHORT, _links
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore
from tests.helpers.browser import in_a_browser, opened
from tests.helpers.command_line import Result, hpstudy

MODE = 'clip_mode = { choices = ["global", "none"] }'
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
Tiny, Build = Callable[..., Study], Callable[[Study], Any]


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Result]:
    return lambda *names: hpstudy("compare", *names, "--runs", tmp_path / "runs")


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Result]:
    return lambda *names: hpstudy("results", *names, "--runs", tmp_path / "runs")


@pytest.fixture
def two(tiny: Tiny, confirmed: Build, searched: Build) -> None:
    """One study with a verdict and one without, on the same text."""
    confirmed(tiny("sure", more=CONFIRM))
    searched(tiny("unsure", replace={"smallest study": "second <b>smallest</b> study"}))


@pytest.mark.usefixtures("two")
def test_compare_shows_a_verdict_beside_a_study_without_one(compare):
    result = compare("sure", "unsure")
    assert (result.code, result.err) == (0, "")
    sure, unsure = (re.search(rf"^{name} .*\n.*", result.out, re.MULTILINE)[0] for name in ("sure", "unsure"))
    baseline, winner = 4 + np.arange(3) / 100, 3.6 + np.arange(3) / 90
    test = stats.ttest_rel(winner, baseline)
    low, high = test.confidence_interval()
    for cell in (
        f"{baseline.mean():.4f}",
        f"± {stats.sem(baseline):.4f} (3)",
        f"{winner.mean():.4f}",
        f"± {stats.sem(winner):.4f} (3)",
        with_sign((winner - baseline).mean(), 4),
        f"[{with_sign(low, 4)}, {with_sign(high, 4)}]",
        "search-0001",
        "better",
        "25.6k",
        "5.12k",
    ):
        assert cell in sure
    for cell in ("4.0000 (1)", "search-0001", "3.6000 (1)", "one seed each,"):
        assert cell in unsure
    assert "better" not in unsure
    assert "sure: Does the smallest study there is run?\n" in result.out
    assert "not comparable" not in result.out


@pytest.mark.usefixtures("two")
def test_stdout_ends_with_the_path_of_a_page_with_its_figures(compare):
    page = Path(compare("sure", "unsure").out.splitlines()[-1])
    text = page.read_text()
    assert text.count('<div class="plot"') == 3  # the differences, and the curves of each study
    assert "<h1>sure: better; unsure: one seed each, no verdict</h1>" in text
    assert "<b>smallest" not in text


@pytest.mark.usefixtures("two")
@in_a_browser
def test_a_browser_draws_the_page_without_network_or_error(compare):
    dom = opened(Path(compare("sure", "unsure").out.splitlines()[-1]))
    assert len(re.findall(r'<div class="plot[^>]*js-plotly-plot', dom)) == 3


@pytest.mark.usefixtures("two")
def test_the_winners_values_stand_side_by_side_with_the_baselines(compare, tmp_path: Path):
    result = compare("sure", "unsure")
    trial = load("sure", tmp_path / "runs").trials.set_index("run_id").loc["search-0001"]
    rows = [line.split("  ") for line in result.out.splitlines()]
    for key, before in (("lr", "0.0006"), ("beta2", "0.95")):
        (cells,) = ([cell.strip() for cell in row if cell.strip()] for row in rows if row[0].strip() == key)
        assert cells == [key, *[f"{before} → {plain(float(trial[key]))}"] * 2]  # the same trial in both


def test_a_key_that_a_study_does_not_search_is_in_brackets_and_a_winner_that_kept_it_says_so(
    compare, tiny: Tiny, searched: Build
):
    searched(tiny("both"))
    searched(tiny("mode", replace={'beta2 = { low = 0.9, high = 0.999, scale = "log1m" }': MODE}))
    lines = [line.split() for line in compare("both", "mode").out.splitlines()]
    assert ["clip_mode", "(global)", "global", "as", "before"] in lines  # made-up trials differ in lr and beta2


def test_only_studies_whose_losses_compare_share_an_axis(tiny: Tiny, confirmed: Build, tmp_path: Path):
    for name, replace in (("ranks", {}), ("bytes", {'"gpt2:256"': '"bytes"'})):
        confirmed(tiny(name, more=CONFIRM, replace=replace))
    findings = [finding(load(name, tmp_path / "runs")) for name in ("ranks", "bytes")]
    apart = write_side_by_side(findings, tmp_path / "apart.html").read_text()
    assert apart.count("<h3>Difference to the baseline: ") == 2
    together = write_side_by_side([findings[0]] * 2, tmp_path / "together.html").read_text()
    assert together.count("<h3>Difference to the baseline") == 1


@pytest.mark.usefixtures("two")
def test_reports_are_named_if_they_are_written_and_else_what_writes_them(compare, tmp_path: Path):
    runs = tmp_path / "runs"
    assert hpstudy("report", "sure", "--runs", runs).code == 0
    lines = compare("sure", "unsure").out.splitlines()
    assert f"sure: {runs / 'sure' / 'report' / 'index.html'}" in lines
    assert f"unsure: `hpstudy report unsure --runs {runs}` writes its report" in lines
    findings = [finding(load(name, runs)) for name in ("sure", "unsure")]
    assert list(_links(findings, runs / "compare" / "x.html")) == [("Report of sure", "../sure/report/index.html")]


@pytest.mark.usefixtures("two")
def test_json_of_several_studies_is_a_list_with_what_belongs_to_all(compare, results, tmp_path: Path):
    found = json.loads(compare("sure", "unsure", "--json").out)
    assert [study["study"] for study in found["studies"]] == ["sure", "unsure"]
    assert (found["incomparable"], Path(found["page"]).exists()) == ([], True)
    assert found["studies"][0] == json.loads(hpstudy("report", "sure", "--runs", tmp_path / "runs", "--json").out) | {
        "report": None  # it was written after the comparison
    }
    answers = json.loads(results("--json").out)
    assert [study["p_adjusted"] for study in answers["studies"]] == [answers["studies"][0]["difference"]["p"], None]
    assert answers["cautions"] == list(cautions([load(name, tmp_path / "runs") for name in ("sure", "unsure")]))


@pytest.mark.usefixtures("two")
def test_a_table_of_eighty_columns_leaves_out_what_the_page_holds(tmp_path: Path):
    findings = [finding(load(name, tmp_path / "runs")) for name in ("sure", "unsure")]
    columns = list(_columns(side_by_side(findings)))
    shorter = [column for column in columns if column.heading in IN_SHORT]
    assert [column.heading for column in shorter] == list(IN_SHORT)
    assert fits(shorter, 80)
    assert not fits(columns, 80)


def test_losses_of_different_tokenizers_are_reported_as_not_comparable(compare, tiny: Tiny, searched: Build):
    searched(tiny("ranks"))
    searched(tiny("bytes", replace={'"gpt2:256"': '"bytes"'}))
    result = compare("ranks", "bytes")
    sentence = (
        "Losses and their differences are not comparable between these studies: tokenizer is gpt2:256 in ranks; bytes "
        "in bytes."
    )
    assert sentence in " ".join(result.out.split())
    assert sentence in Path(result.out.splitlines()[-1]).read_text()


@pytest.mark.usefixtures("two")
def test_all_unknown_names_are_reported_at_once(compare):
    result = compare("sure", "sre", "nonsense", "not a name")
    assert (result.code, result.out) == (2, "")
    first, second, third = result.err.splitlines()
    assert 'no study "sre"' in first
    assert 'did you mean "sure"' in first
    assert 'no study "nonsense"' in second
    assert 'study "not a name"' in third


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("names", [["sure"], ["sure", "sure"], ["sure", "elsewhere/sure.toml"]])
def test_one_study_cannot_be_compared_with_itself(compare, names: list[str]):
    result = compare(*names)
    assert result.code == 2
    assert "takes two studies or more; `hpstudy report sure --runs " in result.err


def test_studies_without_a_finished_run_have_a_row(compare, tiny: Tiny, write_run):
    for name in ("first", "second"):
        write_run(tiny(name), "search-0000", "search", float("nan"), trial=0)
    result = compare("first", "second")
    assert result.code == 0
    assert result.out.count("one seed each,") == 2


def test_results_has_a_row_and_a_section_per_study_with_its_verdict_and_its_command(
    results, tiny, confirmed, searched, tmp_path: Path
):
    sure = tiny("sure", more=CONFIRM, replace={"format = 1": 'format = 1\nyes = "better"'})
    confirmed(sure)
    searched(tiny("unsure", replace={"smallest study": "second <b>smallest</b> study"}))
    here = {"torch": "2.0", "device_name": "a CPU", "cores": 2, "precision": "fp32", "git_commit": "abcdef0"}
    RunStore(tmp_path / "runs" / "sure").write_json("environment.json", {"packages": {"hpstudy": "9.9"}, **here})
    result = results()
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    (row,) = (line for line in lines if line.startswith("| sure |"))
    assert r"| yes | better | −0.3989 \[−0.4016, −0.3961\] |" in row
    (row,) = (line for line in lines if line.startswith("| unsure |"))
    assert row.endswith("| - | - | - |")
    assert "&lt;b&gt;" in row
    assert any(line.startswith("**Yes: search-0001 is better than the baseline") for line in lines)
    assert any(line.startswith("`hpstudy run sure --trials 10`, begun 20") for line in lines)
    assert "commit `abcdef0`, hpstudy 9.9, torch 2.0, optuna ?; a CPU, 2 cores, fp32; 16 runs (" in result.out
    assert "Written by `hpstudy results sure unsure`" in result.out
    assert results("sure").out.count("\n## ") == 1


def test_results_refuses_unknown_names_and_an_empty_folder(results):
    result = results()
    assert (result.code, result.out) == (2, "")
    assert "no study has begun there" in result.err
    assert "nonsense" in results("nonsense").err
