"""What does not matter stands in the page, in Markdown, on the last screen and in the JSON of a study."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

import hpstudy
from hpstudy.analysis.overview import overview
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.state import state
from hpstudy.report.terminal import last_screen
from tests.helpers.gallery import GALLERY, TRAINER
from tests.helpers.made_up import MadeUp, train

MARGIN = 0.03
STUDY = MadeUp(
    text=f"""
question = "What does not matter?"
{TRAINER}
[hparams]
batch_tokens        = 1024
batch_ramp_fraction = 0.0
[search]
lr           = {{ low = 3e-4, high = 3e-2, scale = "log" }}
weight_decay = {{ low = 1e-2, high = 1.0, scale = "log" }}
clip_mode    = {{ choices = ["global", "none"] }}
[budget]
trials  = 40
sampler = "random"
[confirm]
margin = {MARGIN}
seeds  = []
""",
    noise=0.002,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    runs = tmp_path_factory.mktemp("region")
    train("region", STUDY, runs)
    return hpstudy.load("region", runs)


def test_the_region_is_where_the_made_up_loss_rises_by_less_than_the_margin(results: StudyResults) -> None:
    """Of lr, 0.30 log10(lr / 4e-3)^2 nats: 0.03 at a factor of 2.07. The other keys have at most 0.02 and 0.05."""
    found = results.region
    assert found is not None
    assert found.margin == MARGIN
    lr, weight_decay, clip_mode = found.keys
    assert lr.values == pytest.approx((4e-3 / 2.07, 4e-3 * 2.07), rel=0.25)
    assert weight_decay.everything
    assert clip_mode.values == ("global",)
    assert found.kept == ("weight_decay", "clip_mode")
    assert 2e-3 < found.others["lr"] < 8e-3


def test_the_page_markdown_screen_and_json_hold_the_same_region(results: StudyResults, report: Any) -> None:
    assert results.region is not None
    sentence = results.region.sentence("GPT-3")
    assert sentence.startswith(f"Predicted within {MARGIN} nats of the best: lr 0.00")
    assert "Simplest: GPT-3's weight_decay and clip_mode with lr 0.00" in sentence
    pages = report(results)
    assert sentence in html.unescape(pages.html)
    assert sentence in pages.markdown.replace("\\", "")
    screen = str(last_screen(results, state(results), Path("page"), width=80))
    assert sentence in " ".join(screen.split())
    found = overview(results)["region"]
    assert [key["key"] for key in found["keys"]] == ["lr", "weight_decay", "clip_mode"]
    assert found["keys"][2] == {"key": "clip_mode", "everything": False, "choices": ["global"]}
    assert found["simplest"]["weight_decay"] == 0.1


def test_a_short_study_and_one_of_speed_say_nothing(gallery: Any) -> None:
    assert {"decided", "two-objectives"} <= set(GALLERY)
    for name in ("decided", "two-objectives"):
        assert gallery(name).region is None
        assert overview(gallery(name))["region"] is None
