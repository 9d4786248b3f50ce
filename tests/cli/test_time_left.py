"""The time left is of the whole study, at the pace of what this session has trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from hpstudy.cli.time_left import TimeLeft
from hpstudy.records import Phase, Run
from hpstudy.study import Study

TOKENS = 5120  # of a full run
RACE = {"format = 1": "format = 2", "trials = 5": "trials = 4"}
LOOKS = "[confirm]\nlooks = [3, 5, 8]\n"
Clock = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


@pytest.fixture
def raced(tiny: Callable[..., Study]) -> Study:
    """Four trials, of which the first is the baseline, then a race of 3, 5 or 8 seeds a side."""
    return tiny(replace=RACE, more=LOOKS)


def a_run(study: Study, number: int, phase: Phase = "search", **changes: object) -> Run:
    hparams = study.baseline_hparams(TOKENS)
    run = Run(run_id=f"{phase}-{number:04d}", phase=phase, trial=number, seed=0, tokens=TOKENS, hparams=hparams)
    return replace(run, **changes)  # type: ignore[arg-type]


def train(left: TimeLeft, wait: Clock, run: Run, seconds: float) -> None:
    """Trains a whole run."""
    left.start(run, 0)
    wait(seconds)
    left.step(run, run.tokens)
    left.finish(run)


def test_nothing_is_said_before_a_twentieth_of_a_run_is_trained(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    assert str(left) == ""
    left.phase("search", 4, [])
    left.start(a_run(raced, 0), 0)
    wait(10)
    left.step(a_run(raced, 0), TOKENS // 25)
    assert left.seconds() is None


def test_the_search_counts_the_race_that_follows_from_its_first_look_to_its_last(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [])
    train(left, wait, a_run(raced, 0), 10)
    # 3 trials, then 2 sides of 3 to 8 seeds
    assert left.seconds() == (10 * (3 + 6), 10 * (3 + 16))
    assert str(left) == "1m 30s to 3m 10s left"
    left.start(a_run(raced, 1), 0)
    wait(5)
    left.step(a_run(raced, 1), TOKENS // 2)
    assert left.seconds() == (10 * (2.5 + 6), 10 * (2.5 + 16))


def test_more_trials_than_in_the_file_count(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced, 6)
    left.phase("search", 6, [])
    train(left, wait, a_run(raced, 0), 10)
    assert left.seconds() == (10 * (5 + 6), 10 * (5 + 16))


def test_runs_side_by_side_set_the_pace_together(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [])
    for number in (0, 1):
        left.start(a_run(raced, number), 0)
    wait(10)
    for number in (0, 1):
        left.finish(a_run(raced, number))
    assert left.seconds() == (5 * (2 + 6), 5 * (2 + 16))


def test_what_an_earlier_session_trained_does_not_count_as_pace(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [a_run(raced, 0), a_run(raced, 1)])
    left.start(a_run(raced, 2), 3 * TOKENS // 4)  # three quarters are recorded, and pass again
    left.step(a_run(raced, 2), TOKENS // 4)
    left.step(a_run(raced, 2), 3 * TOKENS // 4)
    assert left.seconds() is None
    wait(2)
    left.step(a_run(raced, 2), 7 * TOKENS // 8)  # an eighth in 2 s
    assert left.seconds() == (16 * (1 + 1 / 8 + 6), 16 * (1 + 1 / 8 + 16))
    wait(2)
    left.finish(a_run(raced, 2))
    assert left.seconds() == (16 * (1 + 6), 16 * (1 + 16))


def test_a_run_that_starts_again_after_its_worker_died_keeps_what_this_session_trained(
    raced: Study, wait: Clock
) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [])
    left.start(a_run(raced, 0), 0)
    wait(5)
    left.step(a_run(raced, 0), TOKENS // 2)
    left.start(a_run(raced, 0), TOKENS // 2)
    assert left.seconds() == (10 * (3.5 + 6), 10 * (3.5 + 16))


def test_a_pruned_run_counts_whole_so_that_others_are_expected_to_end_as_early(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [])
    left.start(a_run(raced, 0), 0)
    wait(3)
    left.step(a_run(raced, 0), TOKENS // 4)
    left.finish(a_run(raced, 0))
    assert left.seconds() == (3 * (3 + 6), 3 * (3 + 16))


def test_a_race_counts_its_looks_so_far_and_what_they_may_become(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced)
    left.phase("search", 4, [])
    for number in range(4):
        train(left, wait, a_run(raced, number), 10)
    left.phase("confirm", 6, [], 16)
    assert left.seconds() == (60, 160)
    train(left, wait, a_run(raced, 0, "baseline"), 10)
    assert left.seconds() == (50, 150)
    left.grow(10, 16)  # undecided at the first look
    assert left.seconds() == (90, 150)
    left.grow(6, 6)  # or decided
    assert left.seconds() == (50, 50)
    assert str(left) == "50s left"


def test_a_resumed_race_knows_what_is_done_and_how_much_a_shorter_run_is(
    tiny: Callable[..., Study], wait: Clock
) -> None:
    study = tiny(replace={"trials = 5": "trials = 4"}, more="[confirm]\nseeds = [7, 8, 9]\nspeedup = true\n")
    left = TimeLeft(study)
    done = [a_run(study, number) for number in range(4)]
    left.phase("search", 4, done)
    # a seed: the baseline, the winner, and the winner at a half and at three quarters
    full, half = a_run(study, 0, "baseline"), a_run(study, 2, "confirm", fraction=0.5, tokens=TOKENS // 2)
    left.phase("confirm", 12, [full, a_run(study, 1, "confirm"), half], 12)
    train(left, wait, a_run(study, 3, "confirm", fraction=0.75, tokens=3 * TOKENS // 4), 7.5)
    assert left.seconds() == pytest.approx((65, 65))  # two seeds of 3.25 runs


def test_every_phase_counts(tiny: Callable[..., Study], wait: Clock) -> None:
    """The baseline lies outside the space, so it is a run of its own; the tuned-lr opponent has as many trials."""
    more = '[baseline]\nalso = "tuned-lr"\n[confirm]\nseeds = [7, 8, 9]\n'
    study = tiny(replace={"trials = 5": "trials = 4", "low = 1e-4": "low = 1e-3"}, more=more)
    left = TimeLeft(study)
    left.phase("search", 4, [])
    train(left, wait, a_run(study, 0), 10)
    # 3 trials, the baseline, 4 trials of its lr; three seeds of baseline, winner and opponent
    assert left.seconds() == (10 * (3 + 1 + 4 + 9),) * 2
    left.phase("tuned-lr", 4, [])
    assert left.seconds() == (10 * (4 + 9),) * 2


def test_an_extended_search_does_not_count_the_baselines_runs_that_are_there(raced: Study, wait: Clock) -> None:
    left = TimeLeft(raced, 6)
    seeds = [a_run(raced, number, "baseline", trial=None) for number in range(3)]
    left.earlier([a_run(raced, 0), *seeds])
    left.phase("search", 6, [a_run(raced, number) for number in range(4)])
    train(left, wait, a_run(raced, 4), 10)
    # a trial, then up to five seeds of the baseline and three to eight of a new winner
    assert left.seconds() == (10 * (1 + 3), 10 * (1 + 5 + 8))


def test_runs_of_a_later_phase_are_not_counted_as_trials_nor_twice(raced: Study, wait: Clock) -> None:
    left, ahead = TimeLeft(raced), a_run(raced, 9, "baseline", trial=None)
    left.phase("search", 4, [])
    left.start(ahead, 0)
    wait(5)
    left.step(ahead, TOKENS // 2)
    assert left.seconds() == (10 * (4 + 6), 10 * (4 + 16))
    train(left, wait, ahead, 5)
    # one of the baseline's seeds is there
    assert left.seconds() == (10 * (4 + 5), 10 * (4 + 15))


def test_a_study_without_fresh_seeds_ends_with_its_search(tiny: Callable[..., Study], wait: Clock) -> None:
    left = TimeLeft(tiny())
    left.phase("search", 5, [])
    train(left, wait, a_run(tiny(), 0), 10)
    assert left.seconds() == (40, 40)
