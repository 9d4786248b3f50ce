"""Which runs train as one stacked model, and how many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hpstudy.records import Run

LEAST_GAIN = 1.1  # of tokens per second over one run at a time; less does not pay for its rounding


def take_pack(waiting: deque[Run], largest: int, num_idle: int) -> tuple[Run, ...]:
    """Takes the first waiting run and the next ones of its shape, at most `largest`, and no more than one's even share.

    `num_idle` workers are idle, this one included. Runs of another shape stay, in their order.
    """
    share = -(-len(waiting) // num_idle)
    first = waiting[0]
    pack = tuple(run for run in waiting if run.packs_with(first))[: min(largest, share)]
    for run in pack:
        waiting.remove(run)
    return pack


def best_pack(step_seconds: Callable[[int], float | None], largest: int) -> tuple[int, float]:
    """The power of two up to `largest` with the most tokens per second, and its gain over one run at a time.

    `step_seconds` times a step of so many runs as one; None where it failed, and then no larger pack is tried. 1 where
    the gain is below LEAST_GAIN.
    """
    alone = step_seconds(1)
    best, best_gain, size = 1, 1.0, 2
    while alone is not None and size <= largest and (seconds := step_seconds(size)) is not None:
        gain = size * alone / seconds
        if gain > max(best_gain, LEAST_GAIN):
            best, best_gain = size, gain
        size *= 2
    return best, best_gain
