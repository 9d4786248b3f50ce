"""The ranking of trials: its order, what it leaves out, and the Pareto front against a search of all pairs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.study import MetricName
from hpstudy.study.ranking import Score, best_first, front, ranks_by_loss

LOSS: MetricName = "val/loss"
SPEED: MetricName = "train/tok_per_sec"
VALUES = st.integers(0, 4).map(float) | st.sampled_from([math.nan, math.inf])  # few values, so that many are equal
SCORES = st.lists(st.tuples(VALUES, VALUES), max_size=12).map(
    lambda found: [Score(f"search-{number:04d}", *values) for number, values in enumerate(found)]
)
METRICS = st.sampled_from([[LOSS], [SPEED], [LOSS, SPEED], [SPEED, LOSS]])


def speed(score: Score) -> float:
    """Tokens per second; 0 if they were not measured."""
    return score.tok_per_sec if math.isfinite(score.tok_per_sec) else 0.0


@pytest.mark.parametrize(("metrics", "by_loss"), [([LOSS], True), ([SPEED], False), ([SPEED, LOSS], True)])
def test_the_loss_ranks_trials_wherever_it_is_an_objective(metrics: list[MetricName], by_loss: bool) -> None:
    assert ranks_by_loss(metrics) is by_loss


@given(SCORES)
def test_lower_losses_come_first_then_faster_trials_then_earlier_ones(scores: list[Score]) -> None:
    for metrics in ([LOSS], [LOSS, SPEED], [SPEED, LOSS]):
        ranked = best_first(metrics, scores)
        assert set(ranked) == {score for score in scores if math.isfinite(score.val_loss)}
        assert len(ranked) == len(set(ranked))
        for one, next_ in pairwise(ranked):
            places = [(score.val_loss, -speed(score), scores.index(score)) for score in (one, next_)]
            assert places == sorted(places)


@given(SCORES)
def test_faster_trials_come_first_then_earlier_ones_if_the_loss_is_no_objective(scores: list[Score]) -> None:
    ranked = best_first([SPEED], scores)
    assert set(ranked) == {score for score in scores if math.isfinite(score.tok_per_sec)}
    assert len(ranked) == len(set(ranked))
    for one, next_ in pairwise(ranked):
        places = [(-score.tok_per_sec, scores.index(score)) for score in (one, next_)]
        assert places == sorted(places)


@given(METRICS, SCORES)
def test_trials_in_another_order_differ_only_in_the_order_of_equal_ones(
    metrics: list[MetricName], scores: list[Score]
) -> None:
    def values(ranked: list[Score]) -> list[tuple[float, ...]]:
        return [(score.val_loss, speed(score)) if ranks_by_loss(metrics) else (speed(score),) for score in ranked]

    assert values(best_first(metrics, scores)) == values(best_first(metrics, scores[::-1]))


@pytest.mark.parametrize("metrics", [[LOSS], [LOSS, SPEED], [SPEED, LOSS]])
def test_the_best_trial_has_the_lowest_loss_and_is_the_earliest_of_equals(metrics: list[MetricName]) -> None:
    losses = [4.0, 2.0, 3.0, 2.0, math.nan]
    scores = [Score(f"search-{number:04d}", loss, 1000.0) for number, loss in enumerate(losses)]
    assert [score.run_id[-1] for score in best_first(metrics, scores)] == ["1", "3", "2", "0"]


@given(SCORES)
def test_the_front_of_two_objectives_is_what_no_other_trial_equals_or_beats_in_both(scores: list[Score]) -> None:
    ranked = best_first([LOSS, SPEED], scores)

    def is_beaten(place: int, score: Score) -> bool:
        """Whether a trial is as good in both and better in one, or equal in both and earlier."""
        return any(
            other.val_loss <= score.val_loss
            and speed(other) >= speed(score)
            and ((other.val_loss, speed(other)) != (score.val_loss, speed(score)) or other_place < place)
            for other_place, other in enumerate(ranked)
        )

    expected = [score for place, score in enumerate(ranked) if not is_beaten(place, score)]
    assert front([LOSS, SPEED], ranked) == front([SPEED, LOSS], ranked) == expected
    assert expected or not ranked


@given(st.sampled_from([[LOSS], [SPEED]]), SCORES)
def test_the_front_of_one_objective_is_every_ranked_trial(metrics: list[MetricName], scores: list[Score]) -> None:
    ranked = best_first(metrics, scores)
    assert front(metrics, ranked) == ranked


def test_no_trials_have_no_best_and_no_front() -> None:
    assert best_first([LOSS], []) == []
    assert front([LOSS, SPEED], []) == []
