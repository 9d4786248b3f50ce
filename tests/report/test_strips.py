"""The small drawings of the search hold every trial, escaped, with its true values."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from hpstudy.report.parallel import BOTTOM, TOP, parallel_coordinates
from hpstudy.report.strips import strip
from hpstudy.report.svg import tag

SEARCHED = ["decided", "failures", "pruned", "hundred", "two-objectives", "speed", "interim"]


def test_text_and_attributes_are_escaped() -> None:
    assert tag("title", "<b>&", data_run='"x') == '<title data-run="&#34;x">&lt;b&gt;&amp;</title>'


@pytest.mark.parametrize("name", SEARCHED)
def test_a_strip_has_each_trial_once_and_the_winner_on_top(gallery, name: str) -> None:
    results = gallery(name)
    for key in results.study.space:
        drawn = ET.fromstring(strip(results, key, results.tuned.run_id))
        titles = [found.text.partition(": ")[0] for found in drawn.iter("title")]
        ended = results.trials[(results.trials["phase"] == "search") & results.trials["outcome"].notna()]
        assert sorted(titles) == sorted(ended["run_id"].astype("str"))
        winner = [c for c in drawn.iter("circle") if c.get("class") == "winner"]
        assert [c[0].text.partition(": ")[0] for c in winner] == [results.tuned.run_id]


@pytest.mark.parametrize("name", SEARCHED)
def test_parallel_coordinates_have_a_line_per_trial_and_an_axis_per_key_and_result(gallery, name: str) -> None:
    results = gallery(name)
    drawn = ET.fromstring(parallel_coordinates(results, results.tuned.run_id))
    lines = {line.get("data-run"): line for line in drawn.iter("polyline") if line.get("data-run")}
    ended = results.trials[(results.trials["phase"] == "search") & results.trials["outcome"].notna()]
    assert sorted(lines) == sorted(ended["run_id"].astype("str"))
    num_axes = len(results.study.space) + 1
    assert len([rect for rect in drawn.iter("rect") if rect.get("class") == "grab"]) == num_axes
    complete = set(results.ranked()["run_id"].astype("str"))
    for run, line in lines.items():
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == num_axes if run in complete else num_axes - 1
        assert all(TOP <= y <= BOTTOM for _, y in points)
    assert [line.get("data-run") for line in lines.values() if line.get("class") == "winner"] == [results.tuned.run_id]


def test_the_best_loss_is_at_the_foot_of_its_axis(gallery) -> None:
    results = gallery("decided")
    drawn = ET.fromstring(parallel_coordinates(results, None))
    best = str(results.ranked()["run_id"].iloc[0])
    line = next(line for line in drawn.iter("polyline") if line.get("data-run") == best)
    assert float(line.get("points").split(",")[-1]) == BOTTOM
