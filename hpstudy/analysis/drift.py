"""Whether the machine trained as fast at the end of a search as at its start.

Trial 0 is the baseline, and trains first. Its runs on fresh seeds train after the search, and a seed changes no speed.
The runs that a verdict compares alternate (see hpstudy.running.race_queue), so drift does not favour either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpstudy.analysis.answers import SPEED, by_speed
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Outcome
from hpstudy.statistics.race import BASELINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The baseline's tokens per second after the search over those at its start."""

    ratio: float | None  # None: not measured
    runs: int  # of the baseline after the search; `ratio` is of their median
    missing: str  # why it is not measured; else empty
    winner: str  # the verdict's first candidate; empty before a verdict
    lead: float | None  # its tokens per second over the baseline's, on fresh seeds

    def __str__(self) -> str:
        """`the baseline trained 1.3% slower after the search than at its start (3 runs against one)`."""
        if self.ratio is None:
            return f"not measured, because {self.missing}"
        again = f"{self.runs} run{'s' if self.runs > 1 else ''} against one"
        if not self._size:
            return f"the baseline trained as fast after the search as at its start ({again})"
        pace = "faster" if self.ratio > 1 else "slower"
        return f"the baseline trained {self._size} {pace} after the search than at its start ({again})"

    @property
    def _size(self) -> str:
        """The drift in percent; empty if it is not known, or rounds to none."""
        size = "" if self.ratio is None else f"{abs(self.ratio - 1):.1%}"
        return "" if size == "0.0%" else size

    @property
    def sentence(self) -> str:
        """`Drift: the baseline trained ... .`"""
        return f"Drift: {self}."

    @property
    def warning(self) -> str:
        """That the drift is larger than what the winner gains; empty if it is not, or not known."""
        if self.ratio is None or self.lead is None or abs(math.log(self.ratio)) <= abs(math.log(self.lead)):
            return ""
        if not self._size:
            return ""
        return (
            f"the baseline's speed changed by {self._size} during the search, more than the "
            f"{abs(self.lead - 1):.1%} between {self.winner} and the baseline: the search may have passed over a "
            "faster trial"
        )


def drift(results: StudyResults) -> Drift | None:
    """The drift during a study's search; None if speed is no objective of it."""
    study, trials = results.study, results.trials
    if SPEED not in study.metrics:
        return None
    first = trials[(trials["run_id"] == study.baseline_run_id) & (trials["outcome"] == Outcome.COMPLETE.value)]
    after = results.fresh.speeds(BASELINE)
    if study.baseline_proposal() is None:
        missing = "the baseline is no trial of the search, so it did not train at its start"
    elif not study.seeds:
        missing = "without fresh seeds the baseline does not train again after the search"
    elif first.empty:
        missing = "the baseline's trial is not complete"
    else:
        missing = "" if len(after) else "the baseline has not trained again after the search yet"
    contrasts = results.verdict().contrasts
    speed = contrasts[0].speed if contrasts else None
    return Drift(
        ratio=None if missing else float(after.median() / first["tok_per_sec"].iloc[0]),
        runs=len(after),
        missing=missing,
        winner=contrasts[0].candidate if contrasts else "",
        lead=speed.ratio if speed and by_speed(study) else None,  # by loss, the winner need not be faster
    )


def apart(results: StudyResults) -> list[str]:
    """The candidates whose fresh runs all began after the baseline's last one, as of a search that was extended.

    Empty if speed is no objective: losses do not depend on when a run trains.
    """
    if SPEED not in results.study.metrics:
        return []
    last, fresh = results.fresh.full(BASELINE)["started"].max(), results.fresh
    names = [c.candidate for c in results.verdict().contrasts]
    return [name for name in names if fresh.full(name)["started"].min() > last]
