"""The report in Markdown holds the tables and shows text as it is."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpstudy.analysis.drift import drift
from hpstudy.analysis.foreseen import foreseen
from hpstudy.analysis.results import StudyResults
from hpstudy.report import results_markdown
from hpstudy.study import Study

HOSTILE = "Is <script>alert(1)</script> | **safe** <img src=x onerror=alert(2)>?"
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"

Build, Tiny = Callable[[Study], StudyResults], Callable[..., Study]
Report = Callable[..., Any]


def test_a_hostile_question_is_shown_as_text(tiny: Tiny, searched: Build, report: Report):
    markdown = report(searched(tiny(replace={"Does the smallest study there is run?": HOSTILE}))).markdown
    assert "<" not in markdown
    assert r"Is &lt;script&gt;alert(1)&lt;/script&gt; \| \*\*safe\*\*" in markdown


def test_the_table_has_means_errors_and_differences_of_the_fresh_seeds(tiny: Tiny, confirmed: Build, report: Report):
    results = confirmed(tiny(more=CONFIRM))
    markdown = report(results).markdown
    contrast = results.verdict().contrasts[0]
    baseline, candidate = np.array([4.0, 4.01, 4.02]), np.array([3.6, 3.6 + 1 / 90, 3.6 + 2 / 90])
    cells = [f"{a.mean():.4f} ± {a.std(ddof=1) / 3**0.5:.4f} (3)" for a in (baseline, candidate)]
    assert f"| val loss (nats) | {cells[0]} | {cells[1]} |" in markdown
    ends = ((candidate - baseline).mean(), contrast.low, contrast.high)
    value, low, high = (f"{end:+.4f}".replace("-", "−") for end in ends)
    assert f"{value} \\[{low}, {high}\\]" in markdown


def test_failed_trials_are_listed_with_their_values(tiny: Tiny, searched: Build, report: Report):
    results = searched(tiny())
    lr = results.trials.set_index("run_id").loc["search-0007", "lr"]
    row = next(line for line in report(results).markdown.splitlines() if line.startswith("| search-0007 "))
    assert row.startswith(f"| search-0007 | - | - | {lr:.4g} |")
    assert row.endswith("| diverged at step 20 |")


def test_the_results_of_several_studies_have_a_row_and_a_part_each(tiny: Tiny, confirmed: Build, searched: Build):
    studies = [confirmed(tiny("sure", more=CONFIRM)), searched(tiny("unsure"))]
    markdown = results_markdown(studies)
    assert [line for line in markdown.splitlines() if line.startswith("## ")] == ["## sure", "## unsure"]
    for results in studies:
        sentence = re.sub(r"([\[\]_])", r"\\\1", results.verdict().sentence)
        assert f"**{sentence}**" in html.unescape(markdown).splitlines()


@pytest.mark.parametrize("commit", ["`; rm -rf ~; `", "abcdef0; rm -rf ~", "abcdef0\nrm -rf ~", "HEAD", ""])
def test_text_from_a_received_environment_is_escaped_and_no_part_of_a_command(
    tiny: Tiny, confirmed: Build, report: Report, commit: str
):
    results = confirmed(tiny(more=CONFIRM))
    hostile = "<script>alert(1)</script> `code` [link](http://evil.example)"
    packages = {"hpstudy": hostile, "optuna": hostile}
    environment = {"git_commit": commit, "device_name": hostile, "torch": hostile, "packages": packages}
    results.store.write_json("environment.json", environment)
    whole, short = report(results).markdown, results_markdown([results])
    assert "git checkout" not in whole
    assert "commit `?`" in short
    for text in (whole, short):
        assert "<script>" not in text
        assert "[link](" not in text
        assert " `code`" not in text


def test_foresight_has_a_part_with_its_savings_and_its_audit(gallery, report) -> None:
    results = gallery("foresight")
    found = foreseen(results)
    pages = report(results)
    part = pages.markdown.split("## Foresight")[1].split("\n## ")[0]
    saved = found.savings
    assert f"Foresight stopped {saved.stopped} of 40 trials and saved" in part
    assert f"({saved.share:.0%})." in part
    held = sum(each.held for each in found.audited)
    assert f"The interval held the final loss of {held} of {len(found.audited)} audited trials." in part
    assert 'id="foresight"' in pages.html
    assert "Foresight" not in report(gallery("pruned")).markdown


def test_a_study_by_speed_says_how_the_machine_drifted_in_its_report_and_among_results(gallery, report) -> None:
    results = gallery("speed")
    sentence = drift(results).sentence
    assert sentence.startswith("Drift: the baseline trained ")
    pages = report(results)
    part = pages.markdown.split("## How sure")[1].split("\n## ")[0]
    for text in (pages.html, part, results_markdown([results])):
        assert sentence in text
    assert "Drift" not in report(gallery("decided")).markdown
