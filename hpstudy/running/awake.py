"""The time that the driver was awake, by which it judges how long its workers have been silent."""

from __future__ import annotations

import time

from hpstudy.running.workers import LOOK_SECONDS

LONGEST_LOOK = 2 * LOOK_SECONDS  # counted of the time between two looks; the driver was away for the rest


class AwakeClock:
    """Seconds that this process was awake, if it looks every LOOK_SECONDS.

    It stands still while a laptop sleeps, or a signal or a container holds the process: its workers are then silent
    because they are held too, and may wake later than it does.
    """

    def __init__(self) -> None:
        self._seconds, self._looked = 0.0, time.monotonic()

    def look(self) -> float:
        """The seconds so far."""
        now = time.monotonic()
        self._seconds += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        return self._seconds
