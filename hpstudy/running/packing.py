"""Which runs train as one stacked model, and how many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hpstudy.records import Run

LEAST_GAIN = 1.1  # in tokens per second over one run at a time; less is not worth the different rounding


def take_pack(waiting: deque[Run], largest: int, num_idle: int) -> tuple[Run, ...]:
    """Takes the first waiting run and the next ones of its shape: at most `largest`, and at most an even share.

    `num_idle` workers are idle, this one included. Runs of another shape stay, in their order.
    """
    share = -(-len(waiting) // num_idle)
    first = waiting[0]
    pack = tuple(run for run in waiting if run.packs_with(first))[: min(largest, share)]
    for run in pack:
        waiting.remove(run)
    return pack


def best_pack(step_seconds: Callable[[int], float | None], largest: int) -> tuple[int, float]:
    """(the power of two up to `largest` with the most tokens per second, its gain over one run at a time).

    `step_seconds` times a step of so many runs as one. If it returns None (it failed), no larger pack is tried. The
    size is 1 if the gain stays below LEAST_GAIN.
    """
    alone = step_seconds(1)
    best, best_gain, size = 1, 1.0, 2
    while alone is not None and size <= largest and (seconds := step_seconds(size)) is not None:
        gain = size * alone / seconds
        if gain > max(best_gain, LEAST_GAIN):
            best, best_gain = size, gain
        size *= 2
    return best, best_gain
