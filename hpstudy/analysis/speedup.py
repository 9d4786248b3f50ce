"""How much sooner a candidate reaches the baseline's final loss, by shorter runs with their own full schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpstudy.analysis import stats
from hpstudy.analysis.confirmed import BASELINE, confirmed, losses
from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import Outcome
from hpstudy.study import Study

GRID = 1001  # budgets between the shortest and the full one; neighbours differ by less than 0.1%


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The baseline's cost over the candidate's for the same loss; None: the loss is not reached in the full budget."""

    value: float | None
    low: float | None  # of the 95% interval
    high: float | None
    most: float  # what the shortest runs can show; a value or end of this size means "at least"

    def __str__(self) -> str:
        if self.value is None and self.high is None:
            return "none"
        return f"{self._end(self.value)} (95% interval {self._end(self.low)} to {self._end(self.high)})"

    def _end(self, value: float | None) -> str:
        if value is None:
            return "none"
        return f"≥ {self.most:.2f}x" if value >= self.most else f"{value:.2f}x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """A candidate's speed-up to the baseline's loss, in what the two spend on it."""

    candidate: str
    tokens: Ratio
    steps: Ratio
    seconds: Ratio  # of training, evaluation excluded
    n: int  # seeds


def speedup(frames: StudyFrames, study: Study, candidate: str) -> Speedup | None:
    """The measured speed-up; None ("not measured") before two seeds ran at the full budget and at a shorter one.

    The loss a budget gives is interpolated between the budgets that ran, seed by seed, linearly in log tokens. The
    budget at which the mean difference to the baseline's final loss is zero gives the value; the budgets at which zero
    lies in the difference's 95% interval give the speed-up's (Fieller's way: no ratio of noisy numbers is averaged).
    The price of a token (steps, seconds) is taken as known: the mean over the complete full runs.
    """
    runs = confirmed(frames, study)
    complete = runs[(runs["outcome"] == Outcome.COMPLETE.value) & (runs["fraction"] == 1)]
    ours, theirs = runs[runs["candidate"] == candidate], losses(runs, BASELINE)
    curves = ours.pivot_table(index="seed", columns="fraction", values="loss").dropna()
    if study.confirm.design == "paired":
        shared = curves.index.intersection(theirs.index)
        curves, theirs = curves.loc[shared], theirs[shared]
    budgets = ours.groupby("fraction")["budget_tokens"].mean()
    fractions = (budgets / budgets.max())[curves.columns].to_numpy(float)  # whole steps: not quite a half
    if min(len(curves), len(theirs), len(fractions)) < 2 or fractions[-1] != 1:
        return None
    grid = np.geomspace(fractions[0], 1, GRID)
    at_grid = np.array([np.interp(np.log(grid), np.log(fractions), row) for row in curves.to_numpy(float)])
    design = study.confirm.design
    gap = stats.difference(at_grid.T, np.broadcast_to(theirs, (GRID, len(theirs))), design=design, margin=0)
    value, low, high = (_first(grid, side <= 0) for side in (gap.mean, gap.high, gap.low))
    full, baseline = (complete[complete["candidate"] == side] for side in (candidate, BASELINE))
    if full.empty or baseline.empty:
        return None

    def ratio(cost: pd.Series[float]) -> Ratio:
        whole = float(cost[baseline.index].mean() / cost[full.index].mean())
        ends = {key: None if f is None else whole / f for key, f in (("value", value), ("low", low), ("high", high))}
        return Ratio(**ends, most=whole / float(grid[0]))

    tokens = runs["budget_tokens"].astype("float64")
    return Speedup(
        candidate=candidate,
        tokens=ratio(tokens),
        steps=ratio(runs["steps"].astype("float64")),
        seconds=ratio(tokens / runs["tok_per_sec"]),
        n=len(curves),
    )


def crossing_tokens(frames: StudyFrames, study: Study, candidate: str) -> float | None:
    """Tokens at which the candidate's own mean val/loss first is as low as the baseline's mean final loss.

    Interpolated between evaluations; None where it never is. A crossing in mid-schedule, at a learning rate that has
    not decayed yet: it says less than `speedup`, whose shorter runs end their schedules.
    """
    runs = confirmed(frames, study)
    full = runs[(runs["candidate"] == candidate) & (runs["fraction"] == 1)]
    steps = frames.steps[frames.steps["run_id"].isin(full["run"]) & frames.steps["val/loss"].notna()]
    curve = steps.groupby("tokens")["val/loss"].mean()
    target = losses(runs, BASELINE).mean()
    below = np.flatnonzero(curve.to_numpy() <= target)
    if not len(below):
        return None
    last = below[0]
    tokens, values = curve.index.to_numpy(float), curve.to_numpy(float)
    if last == 0:
        return float(tokens[0])
    return float(np.interp(-target, -values[last - 1 : last + 1], tokens[last - 1 : last + 1]))


def _first(grid: np.ndarray, reached: np.ndarray) -> float | None:
    """The smallest budget from which on the loss is reached at every budget; None where the full one does not."""
    missed = np.flatnonzero(~reached)
    if not len(missed):
        return float(grid[0])
    return None if missed[-1] == len(grid) - 1 else float(grid[missed[-1] + 1])
