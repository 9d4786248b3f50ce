"""Which trial is best: the one ranking that the driver, the live view, the terminal and the report share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpstudy.records import RunResult
from hpstudy.study.schema import MetricName


class Score(NamedTuple):
    """What a complete trial measured."""

    run_id: str
    val_loss: float  # nats
    tok_per_sec: float

    @classmethod
    def of(cls, run_id: str, result: RunResult) -> Score:
        """The score of a run's result."""
        return cls(run_id, math.nan if result.val_loss is None else result.val_loss, result.tok_per_sec or 0.0)


def ranks_by_loss(metrics: Sequence[MetricName]) -> bool:
    """Whether the loss ranks trials: it does wherever it is an objective, else tokens per second do."""
    return "val/loss" in metrics


def best_first(metrics: Sequence[MetricName], scores: Iterable[Score]) -> list[Score]:
    """Trials by loss, the faster first among equals; the fastest first if the loss is not an objective.

    Trials without a finite value of the deciding metric are left out. Equal trials keep their order.
    """
    if ranks_by_loss(metrics):
        finite = (score for score in scores if math.isfinite(score.val_loss))
        return sorted(finite, key=lambda score: (score.val_loss, -_speed(score)))
    return sorted((s for s in scores if math.isfinite(s.tok_per_sec)), key=_speed, reverse=True)


def front(metrics: Sequence[MetricName], ranked: Sequence[Score]) -> list[Score]:
    """Of two objectives the Pareto front: trials that no other equals or beats in both. Of one, all trials."""
    if len(metrics) == 1:
        return list(ranked)
    found: list[Score] = []
    for score in ranked:  # by loss, so that each next member must be faster than all before it
        if not found or _speed(score) > _speed(found[-1]):
            found.append(score)
    return found


def _speed(score: Score) -> float:
    return score.tok_per_sec if math.isfinite(score.tok_per_sec) else 0.0
