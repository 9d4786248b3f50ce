"""A study's answer in one sentence and in a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.analysis.in_short import in_a_word, in_short, opponent
from hpstudy.analysis.results import StudyResults, load
from hpstudy.analysis.state import state
from hpstudy.running.confirm import update_selections
from hpstudy.study import Study
from hpstudy.study.load import parse_study
from tests.helpers.gallery import GALLERY

TEN = {"trials = 5": "trials = 10"}
CONFIRM = "[confirm]\nseeds = [101, 102, 103]\n"
Tiny, Build = Callable[..., Study], Callable[[Study], StudyResults]


def said(results: StudyResults) -> tuple[str, str, str, str]:
    """(word, badge, tone, sentence)."""
    now = state(results)
    short = in_short(results, now)
    return in_a_word(results, now), short.badge, short.tone, short.sentence


@pytest.fixture
def confirm(searched: Build, write_run, tmp_path: Path) -> Callable[..., StudyResults]:
    """A search of ten trials, then baseline and trial 1 on three seeds with these differences."""

    def build(study: Study, *differences: float) -> StudyResults:
        store = searched(study).store
        assert store is not None
        update_selections(study, store, print)
        for number, difference in enumerate(differences):
            seed, loss = 101 + number, 4 + number / 100
            write_run(study, f"baseline-s{seed}", "baseline", loss, seed=seed)
            write_run(study, f"confirm-0001-s{seed}", "confirm", loss + difference, trial=1, seed=seed)
        return load(study.name, tmp_path / "runs")

    return build


BETTER, WORSE, SAME, OPEN = (-0.3, -0.31, -0.29), (0.3, 0.31, 0.29), (0.001, -0.001, 0.0), (-0.03, 0.01, -0.02)
TUNED, FOUND = "Tuned values", "The best values found"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        (BETTER, ("better", "Better", "good", f"{TUNED} reach 3.7100 nats where GPT-3's reach 4.0100.")),
        (
            WORSE,
            ("nothing better", "Worse", "open", "The best of 9 trials reaches 4.3100 nats where GPT-3's values reach "
             "4.0100."),
        ),
        (
            SAME,
            ("equivalent", "Equivalent", "open", f"{FOUND} and GPT-3's reach the same loss, 4.0100 nats, within 0.01."),
        ),
        (
            OPEN,
            ("undecided", "Undecided", "open", f"{FOUND} are 0.013 nats better than GPT-3's, which 3 seeds do not "
             "show."),
        ),
    ],
)  # fmt: skip
def test_an_answer_is_a_word_a_badge_and_a_sentence(
    tiny: Tiny, confirm, differences: tuple[float, ...], expected: tuple[str, ...]
) -> None:
    assert said(confirm(tiny(more=CONFIRM, replace=TEN), *differences)) == expected


@pytest.mark.parametrize(
    ("yes", "differences", "word", "badge", "tone"),
    [
        ("better", BETTER, "yes, better", "Yes", "good"),
        ("worse", BETTER, "no, better", "No", "bad"),
        ("better", WORSE, "nothing better", "Nothing better", "bad"),
        ("equivalent", SAME, "yes, equivalent", "Yes", "good"),
        ("better", OPEN, "undecided", "Undecided", "open"),
    ],
)
def test_a_question_with_a_yes_is_answered(tiny: Tiny, confirm, yes, differences, word, badge, tone) -> None:
    study = tiny(more=CONFIRM, replace=TEN | {"format = 1": f'format = 1\nyes = "{yes}"'})
    assert said(confirm(study, *differences))[:3] == (word, badge, tone)


def test_a_search_under_way_says_how_far_it_is(tiny: Tiny, write_run, tmp_path: Path) -> None:
    write_run(tiny(), "search-0000", "search", 4.0, trial=0)
    found = said(load("tiny", tmp_path / "runs"))
    assert found == ("stopped", "1 of 5 trials", "open", "No trial is complete yet.")
    write_run(tiny(), "search-0001", "search", 3.9, trial=1)
    found = said(load("tiny", tmp_path / "runs"))
    sentence = "The best trial so far reaches 3.900 nats, GPT-3's values 4.000; one seed each, no verdict."
    assert found == ("stopped", "2 of 5 trials", "open", sentence)


def test_a_search_without_fresh_seeds_is_not_confirmed(tiny: Tiny, searched: Build) -> None:
    assert said(searched(tiny(replace=TEN)))[:3] == ("not confirmed", "No verdict yet", "open")


def test_a_baseline_is_named_for_gpt3_unless_a_searched_key_departs(tiny: Tiny) -> None:
    assert opponent(tiny()) == "GPT-3"  # batch_tokens departs and is not searched
    own = {"batch_tokens = 256": "batch_tokens = 256\nlr = 1e-3", "lr = { low": "eps = { low", "1e-4": "1e-9"}
    assert opponent(tiny(replace=own)) == "GPT-3"
    overridden = "[baseline]\noverrides = { lr = 1e-3 }\n"
    assert opponent(tiny(more=overridden)) == "baseline"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("decided", "GPT-3"),  # its batch is not GPT-3's, but is not searched
        ("opponents", "baseline"),  # searches the batch
        ("speed", "baseline"),  # searches the micro-batch, which GPT-3's paper does not state
    ],
)
def test_the_baseline_is_called_gpt3_if_it_has_its_value_of_every_searched_key(name: str, shown: str) -> None:
    assert opponent(parse_study(GALLERY[name].text, name=name, path=Path(f"{name}.toml"))) == shown
