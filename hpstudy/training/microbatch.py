"""Which micro-batch trains fastest: sizes are tried upward, whole steps each, until memory or speed says stop.

At a fixed batch the micro-batch changes speed and rounding only, so the choice asks for nothing but speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HEADROOM = 0.1  # of the memory that a training may have, kept free
NOTICEABLE = 0.02  # a smaller difference in speed is not worth more memory
LEAST_TOKENS = 1024  # of one forward pass; half as many trained at 0.8 to 0.9 of the speed on one core


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a few whole steps at one micro-batch took."""

    size: int  # sequences
    tok_per_sec: float | None  # None: they did not run
    peak_gib: float = 0.0
    room_gib: float = math.inf  # what the training may have in all
    message: str = ""  # why they did not run

    @property
    def fits(self) -> bool:
        """Whether the steps ran and left the head-room free."""
        return self.tok_per_sec is not None and self.peak_gib <= (1 - HEADROOM) * self.room_gib

    def __str__(self) -> str:
        """One size of the line that tells the user how the choice was made."""
        if self.tok_per_sec is None:
            return f"{self.size} (does not run: {self.message})"
        short = "" if self.fits else f" of {self.room_gib:.2f}"
        return f"{self.size} ({self.tok_per_sec:,.0f} tok/s, {self.peak_gib:.2f}{short} GiB)"


def candidates(sequences: int, context: int) -> list[int]:
    """Divisors of a batch's sequences to try, rising, each at least twice the one before.

    Sizes below LEAST_TOKENS a forward pass are left out, unless the whole batch is smaller.
    """
    least = min(sequences, -(-LEAST_TOKENS // context))
    found: list[int] = []
    for size in range(least, sequences + 1):
        if sequences % size == 0 and (not found or size >= 2 * found[-1]):
            found.append(size)
    return found


def climb(sizes: Sequence[int], probe: Callable[[int], Probe]) -> list[Probe]:
    """Probes of rising sizes.

    Ends before a size that would not leave the head-room by the growth of the last two, after one that did not, and
    after two in a row that were not noticeably faster than the best before them.
    """
    probes: list[Probe] = []
    for size in sizes:
        if _expected_gib(probes, size) > (1 - HEADROOM) * min((p.room_gib for p in probes), default=math.inf):
            break
        probes.append(probe(size))
        if not probes[-1].fits or not (_grows(probes) or _grows(probes[:-1])):
            break
    return probes


def choose(probes: Sequence[Probe]) -> int | None:
    """The smallest size that is as fast as the fastest that fits, to within NOTICEABLE; None when none ran.

    When not even the first leaves the head-room, but runs, it is taken: the head-room is a precaution.
    """
    speeds = {p.size: p.tok_per_sec for p in probes if p.tok_per_sec is not None and (p.fits or p is probes[0])}
    fastest = max(speeds.values(), default=0.0)
    return min((size for size, speed in speeds.items() if speed >= (1 - NOTICEABLE) * fastest), default=None)


def _expected_gib(probes: Sequence[Probe], size: int) -> float:
    """Peak memory at a size, on the line through the last two probes; 0 before there are two."""
    if len(probes) < 2:
        return 0.0
    before, last = probes[-2:]
    slope = (last.peak_gib - before.peak_gib) / (last.size - before.size)
    return last.peak_gib + slope * (size - last.size)


def _grows(probes: Sequence[Probe]) -> bool:
    """Whether the last probe is noticeably faster than the best before it."""
    best = max((p.tok_per_sec or 0.0 for p in probes[:-1]), default=0.0)
    return not probes or (probes[-1].tok_per_sec or 0.0) > (1 + NOTICEABLE) * best
