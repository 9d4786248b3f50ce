"""How long a whole study still takes, at the pace of this session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpstudy.analysis.numbers import duration
from hpstudy.records import Phase, Run
from hpstudy.running.confirm import planned
from hpstudy.statistics.race import Rules
from hpstudy.study import Study

PHASES: tuple[Phase, ...] = ("search", "baseline", "tuned-lr", "batch", "confirm")  # in order
LEAST_TRAINED = 0.05  # full runs, before which a pace says little


@dataclass(slots=True)
class _Share:
    """How much of an active run is trained, and how much of that before this session."""

    run: Run
    now: float
    before: float


class TimeLeft:
    """Counts training in full runs: a run of half the budget is half of one, whatever its batch.

    The runs still to train are those of every phase. A race stops between its first look and its last, so there are two
    ends: the time until its first look, and the time if it goes to its last. The search may find fewer candidates than
    planned, and then both are too long.
    """

    def __init__(self, study: Study, trials: int | None = None) -> None:
        """`trials` is the number of trials if it is not the file's."""
        plan, looks = planned(study, trials), Rules.of(study).looks
        alone = study.baseline_proposal() is None  # then the baseline is no trial
        self._baseline_id = study.baseline_run_id
        self._planned: dict[Phase, int] = {phase: len(plan.get(phase, [])) for phase in ("search", "tuned-lr", "batch")}
        self._planned["baseline"] = int(alone and "baseline" in plan)
        self._first, self._last = looks[0], looks[-1]
        confirm = plan.get("confirm", [])
        self._per_seed = sum(confirm) / self._last if self._last else 0.0  # full runs of all candidates
        runs_per_seed = len(confirm) / self._last if self._last else 0.0
        self._mean = (1 + self._per_seed) / (1 + runs_per_seed)  # full runs in a run on a fresh seed
        self._earlier_baselines = 0
        self._phase: Phase | None = None
        self._num_runs, self._most_runs, self._done = 0, 0, 0.0
        self._active: dict[str, _Share] = {}
        self._since: float | None = None  # when the first run of this session began
        self._trained = 0.0  # full runs, by this session, of runs that have ended

    def earlier(self, finished: Sequence[Run]) -> None:
        """Takes the runs of all phases that earlier sessions finished."""
        self._earlier_baselines = sum(run.phase == "baseline" and run.run_id != self._baseline_id for run in finished)

    def phase(self, name: Phase, num_runs: int, finished: Sequence[Run], most: int | None = None) -> None:
        """A phase begins, which may grow to `most` runs, and the ones before it are over."""
        self._phase, self._done = name, sum(run.fraction for run in finished)
        self.grow(num_runs, num_runs if most is None else most)

    def grow(self, num_runs: int, most: int) -> None:
        """The phase has so many runs now, and may grow to `most`."""
        self._num_runs, self._most_runs = num_runs, most

    def start(self, run: Run, tokens: int) -> None:
        """A run begins, or resumes with `tokens` recorded; one that begins again keeps its first beginning."""
        if self._since is None:
            self._since = time.monotonic()
        share = tokens / run.tokens
        again = self._active.get(run.run_id)
        self._active[run.run_id] = _Share(run, share, min(share, again.before) if again else share)

    def step(self, run: Run, tokens: int) -> None:
        """A run has trained on so many tokens."""
        active = self._active[run.run_id]
        active.now = max(active.now, tokens / run.tokens)  # recorded steps pass again

    def finish(self, run: Run) -> None:
        """A run has ended. One that ended early counts whole, as others like it will end early too."""
        active = self._active.pop(run.run_id)
        self._trained += run.fraction * (1 - active.before)
        if not self.is_ahead(run):
            self._done += run.fraction
        elif run.run_id == self._baseline_id:
            self._planned["baseline"] = 0
        else:
            self._earlier_baselines += 1

    def is_ahead(self, run: Run) -> bool:
        """Whether a run belongs to a later phase than the one that is under way."""
        if self._phase == "baseline":
            return run.run_id != self._baseline_id
        return self._phase != "confirm" and run.phase != self._phase

    def seconds(self) -> tuple[float, float] | None:
        """(at least, at most); None before the pace is known."""
        trained = self._trained + sum(a.run.fraction * (a.now - a.before) for a in self._active.values())
        if self._since is None or trained < LEAST_TRAINED:
            return None
        pace = (time.monotonic() - self._since) / trained
        low, high = self._runs_left()
        return pace * low, pace * high

    def __str__(self) -> str:
        """`4m 30s left`, `36s to 2m 40s left`, or nothing before the pace is known."""
        if (found := self.seconds()) is None:
            return ""
        low, high = map(duration, found)
        return f"{low} left" if low == high else f"{low} to {high} left"

    def _runs_left(self) -> tuple[float, float]:
        """Full runs that are left: at least, at most."""
        active = self._done + sum(a.run.fraction * a.now for a in self._active.values() if not self.is_ahead(a.run))
        if self._phase == "confirm":
            low, high = (max(0.0, runs * self._mean - active) for runs in (self._num_runs, self._most_runs))
            return low, high
        later = PHASES if self._phase is None else PHASES[PHASES.index(self._phase) + 1 :]
        before = max(0.0, self._num_runs - active) + sum(self._planned.get(phase, 0) for phase in later)
        return before + self._fresh(self._first), before + self._fresh(self._last)

    def _fresh(self, seeds: int) -> float:
        """Full runs of a confirmation on so many seeds, less the baseline's that are there."""
        return max(0, seeds - self._earlier_baselines) + seeds * self._per_seed
