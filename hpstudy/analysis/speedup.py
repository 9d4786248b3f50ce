"""How much sooner a candidate reaches the baseline's final loss, from shorter runs with their own full schedules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.records import Outcome
from hpstudy.statistics.difference import difference
from hpstudy.statistics.race import BASELINE, Rules

GRID = 1001  # budgets between the shortest and the full one; neighbours differ by less than 0.1%


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The baseline's cost over the candidate's for the same loss. None: the full budget does not reach the loss."""

    value: float | None
    low: float | None  # 95% interval
    high: float | None
    most: float  # the largest ratio that the shortest runs can show; a number of this size means "at least"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """A candidate's speed-up to the baseline's loss, in tokens, steps and seconds."""

    candidate: str
    tokens: Ratio
    steps: Ratio
    seconds: Ratio  # of training, evaluation excluded
    n: int  # seeds


def speedup(fresh: FreshRuns, candidate: str) -> Speedup | None:
    """The measured speed-up. None until two seeds have run at the full budget and at a shorter one.

    The loss at a budget is interpolated between the budgets that ran, seed by seed, linearly in log tokens. The value
    is the budget at which the mean difference to the baseline's final loss is zero; the interval holds the budgets at
    which zero lies in the difference's 95% interval (Fieller's method, so that no ratio of noisy numbers is averaged).
    The cost of a token in steps and seconds is taken as known: the mean over the complete full runs.
    """
    study, runs = fresh.study, fresh.table
    complete = runs[(runs["outcome"] == Outcome.COMPLETE.value) & (runs["fraction"] == 1)]
    ours, theirs = runs[runs["candidate"] == candidate], fresh.losses(BASELINE)
    curves = ours.pivot_table(index="seed", columns="fraction", values="loss").dropna()
    if study.confirm.design == "paired":
        shared = curves.index.intersection(theirs.index)
        curves, theirs = curves.loc[shared], theirs[shared]
    budgets = ours.groupby("fraction")["budget_tokens"].mean()
    fractions = (budgets / budgets.max())[curves.columns].to_numpy(float)  # of whole steps, so not quite a half
    if min(len(curves), len(theirs), len(fractions)) < 2 or fractions[-1] != 1:
        return None
    grid = np.geomspace(fractions[0], 1, GRID)
    at_grid = np.array([np.interp(np.log(grid), np.log(fractions), row) for row in curves.to_numpy(float)])
    design = study.confirm.design
    gap = difference(at_grid.T, np.broadcast_to(theirs, (GRID, len(theirs))), design=design)
    low_gap, high_gap = gap.interval(Rules.of(study).level(1))
    value, low, high = (_first(grid, side <= 0) for side in (gap.mean, high_gap, low_gap))
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


def crossing_tokens(fresh: FreshRuns, candidate: str) -> float | None:
    """The tokens after which the candidate's mean val/loss is first as low as the baseline's mean final loss.

    Interpolated between evaluations; None if that never happens. It is in mid-schedule, before the learning rate has
    decayed, so it says less than `speedup`, whose shorter runs complete their schedules.
    """
    full = fresh.full(candidate)
    steps = fresh.frames.steps
    steps = steps[steps["run_id"].isin(full["run"]) & steps["val/loss"].notna()]
    curve = steps.groupby("tokens")["val/loss"].mean()
    target = fresh.losses(BASELINE).mean()
    below = np.flatnonzero(curve.to_numpy() <= target)
    if not len(below):
        return None
    first = below[0]
    tokens, values = curve.index.to_numpy(float), curve.to_numpy(float)
    if first == 0:
        return float(tokens[0])
    return float(np.interp(-target, -values[first - 1 : first + 1], tokens[first - 1 : first + 1]))


def _first(grid: np.ndarray, reached: np.ndarray) -> float | None:
    """The smallest budget from which on the loss is always reached; None if the full one does not reach it."""
    missed = np.flatnonzero(~reached)
    if not len(missed):
        return float(grid[0])
    return None if missed[-1] == len(grid) - 1 else float(grid[missed[-1] + 1])
