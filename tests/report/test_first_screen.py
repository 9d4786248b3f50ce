"""The first screen has the answer, its evidence, what to change and the next step, for a study in any state."""

from __future__ import annotations

import tomllib

import pytest

from hpstudy.report.curves import shown_runs
from hpstudy.report.first_screen import FirstScreen, first_screen


@pytest.fixture
def screen(gallery):
    def get(name: str) -> FirstScreen:
        return first_screen(gallery(name), shown_runs(gallery(name)))

    return get


@pytest.mark.parametrize(
    ("name", "badge", "tone", "heading", "tabs"),
    [
        ("decided", "No", "bad", "What to change", "tokens steps seconds difference"),
        ("undecided", "Undecided", "open", "The best values found", "tokens steps seconds difference"),
        ("two-objectives", "Better", "good", "What to change", "front tokens steps seconds difference"),
        ("interim", "2 of 12 trials", "open", "The best so far, one seed", "tokens steps seconds"),
        ("baseline-only", "Reference", "open", "The best so far, one seed", "tokens steps seconds"),
    ],
)
def test_badge_heading_and_tabs_follow_the_state(screen, name, badge, tone, heading, tabs) -> None:
    found = screen(name)
    assert (found.short.badge, found.short.tone, found.heading) == (badge, tone, heading)
    assert [label for label, _ in found.tabs] == tabs.split()


def test_the_evidence_begins_with_the_difference_its_interval_seeds_and_p(screen, gallery) -> None:
    first = gallery("decided").verdict().contrasts[0]
    measured, seeds, p, runs, tokens, *_ = screen("decided").evidence
    assert measured.startswith(f"−{abs(first.difference):.3f} nats [95% −")
    assert seeds == f"{first.n} fresh seed pairs"
    assert p == f"p = {first.p:.2g}"
    assert runs == f"{len(gallery('decided').trials)} runs"
    assert tokens.endswith("M tokens")


def test_two_objectives_have_the_speed_in_their_evidence_and_sentence(screen, gallery) -> None:
    speed = gallery("two-objectives").verdict().contrasts[0].speed
    found = screen("two-objectives")
    assert f"{speed.ratio:.2f}"[:3] in found.evidence[1]
    assert found.evidence[1].partition(" [")[0].endswith("x speed")
    assert "times the speed" in found.short.sentence


def test_the_changes_are_the_searched_keys_with_the_found_values(screen, gallery) -> None:
    results, found = gallery("decided"), screen("decided")
    assert [row.key for row in found.changes] == list(results.study.space)
    stated = tomllib.loads(found.toml)["hparams"]
    best = results.trials.set_index("run_id").loc[results.tuned.run_id]
    assert {key: stated[key] for key in results.study.space} == {key: best[key] for key in results.study.space}
    assert stated["batch_tokens"] == 2048  # what the study fixes, so that the values mean the same elsewhere


def test_a_decided_study_says_what_its_seeds_cannot_exclude(screen) -> None:
    assert "of 3 seeds, up to 63% of either side's further runs may still do." in screen("decided").caveats
    assert not screen("interim").caveats
