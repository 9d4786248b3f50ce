"""Long tables of steps -> the few points and the few runs that a figure can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hpstudy.analysis.results import StudyResults
from hpstudy.statistics.difference import ALPHA, difference
from hpstudy.statistics.race import BASELINE
from hpstudy.study import Study
from hpstudy.study.ranking import ranks_by_loss
from hpstudy.study.schema import Design

Floats = npt.NDArray[np.floating]

MOST_POINTS = 300  # of a curve
MOST_FAINT = 60  # search trials behind the main curves


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRuns:
    """The runs that a figure shows, by role."""

    baseline: tuple[str, ...]  # its runs on fresh seeds, or its run in the search if there are none
    candidates: dict[str, tuple[str, ...]]  # each confirmed candidate's runs on fresh seeds, the best first; else the
    # search's best trial
    faint: tuple[str, ...]  # search trials from best to worst

    @property
    def all(self) -> tuple[str, ...]:
        """Every run, once."""
        parts = (self.faint, self.baseline, *self.candidates.values())
        return tuple(dict.fromkeys(run for part in parts for run in part))


def shown_runs(results: StudyResults) -> ShownRuns:
    """The runs that the verdict rests on, and at most MOST_FAINT search trials, evenly spread from best to worst."""
    verdict, once = results.verdict(), results.study.baseline_run_id
    judged = {c.candidate: _judged(results, c.candidate, c.candidate) for c in verdict.contrasts}
    first = verdict.contrasts[0].candidate if verdict.contrasts else None
    baseline = _judged(results, BASELINE, first)
    best_so_far: dict[str, tuple[str, ...]] = {}
    if results.tuned:
        best_so_far[results.tuned.run_id] = (results.tuned.run_id,)
    candidates = judged or best_so_far
    hidden = {once, *(() if verdict.contrasts else best_so_far)}
    others = [run for run in _by_rank(results) if run not in hidden]
    return ShownRuns(
        baseline=(baseline or (once,)) if verdict.noise else (once,),
        candidates=candidates,
        faint=tuple(spread(others, MOST_FAINT)),
    )


def _judged(results: StudyResults, side: str, candidate: str | None) -> tuple[str, ...]:
    """A side's fresh runs with a loss: those that a candidate was judged on, so that curves end at its verdict's means.

    All of them without a candidate.
    """
    full = results.fresh.full(side)
    full = full[full["loss"].notna()]
    if candidate is not None and (found := results.fresh.race.findings.get((candidate, BASELINE))):
        seeds = results.study.baseline_seeds if side == BASELINE else results.study.seeds
        full = full[full["seed"].isin(seeds[: found.seeds])]
    return tuple(full["run"])


def _by_rank(results: StudyResults) -> list[str]:
    """Every search trial: the complete ones best first, then the others, unfinished ones included."""
    trials = results.trials
    searched = trials.loc[trials["phase"] == "search", "run_id"].astype("str")
    return list(dict.fromkeys([*results.ranked()["run_id"].astype("str"), *searched]))


def objective_column(study: Study) -> str:
    """The column of `trials` that ranks them."""
    return "val_loss" if ranks_by_loss(study.metrics) else "tok_per_sec"


def spread(ranked: list[str], most: int) -> list[str]:
    """At most `most` of a list at even distances, with the first and the last."""
    if len(ranked) <= most:
        return ranked
    return [ranked[index] for index in np.linspace(0, len(ranked) - 1, most).round().astype(int)]


def by_run(steps: pd.DataFrame, wanted: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The steps of each wanted run that has any, as slices without a copy. `steps` must be in order of runs."""
    order = {str(run): code for code, run in enumerate(steps["run_id"].cat.categories)}
    codes = steps["run_id"].cat.codes.to_numpy()
    spans = {run: np.searchsorted(codes, [order[run], order[run] + 1]) for run in wanted if run in order}
    return {run: steps.iloc[start:stop] for run, (start, stop) in spans.items() if stop > start}


def thin(x: pd.Series, y: pd.Series, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """At most `most` points of a curve: the first, the last, and each window's lowest and highest.

    So no spike is lost. Points that are not finite are left out.
    """
    xs, ys = x.to_numpy("float64", na_value=np.nan), y.to_numpy("float64", na_value=np.nan)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if len(xs) > most:
        windows = np.array_split(np.arange(len(xs)), (most - 2) // 2)
        extremes = [window[[ys[window].argmin(), ys[window].argmax()]] for window in windows]
        kept = np.unique(np.concatenate([[0, len(xs) - 1], *extremes]))
        xs, ys = xs[kept], ys[kept]
    return xs.astype("float32"), ys.astype("float32")


def windowed(x: pd.Series, y: pd.Series, windows: int = 50) -> tuple[Floats, Floats]:
    """A curve's mean in each of at most `windows` windows, placed at their ends. For shares and rates."""
    xs, ys = x.to_numpy("float64"), y.to_numpy("float64")
    parts = np.array_split(np.arange(len(xs)), min(windows, len(xs)))
    ends = [xs[part[-1]] for part in parts]
    return np.array(ends, dtype="float32"), np.array([ys[part].mean() for part in parts], dtype="float32")


def evaluations(run: pd.DataFrame) -> pd.DataFrame:
    """A run's evaluations by their index: columns tokens, steps, seconds (of its steps so far) and loss."""
    seconds = run["train/step_seconds"].cumsum()
    there = run["val/loss"].notna()
    found = run.loc[there, ["val/index", "tokens", "step", "val/loss"]].assign(seconds=seconds[there])
    found = found.rename(columns={"step": "steps", "val/loss": "loss"}).astype("float64")
    return found.set_index("val/index")


def evaluated(results: StudyResults, shown: ShownRuns) -> dict[str, pd.DataFrame]:
    """The `evaluations` of each shown run that has any."""
    found = {name: evaluations(run) for name, run in by_run(results.steps, shown.all).items()}
    return {name: evals for name, evals in found.items() if len(evals)}


def band(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean tokens, steps and seconds of several runs' `evaluations`, the mean loss, and sd (NaN for one run)."""
    by_eval = pd.concat(runs).groupby(level=0)
    return by_eval.agg(
        tokens=("tokens", "mean"),
        steps=("steps", "mean"),
        seconds=("seconds", "mean"),
        mean=("loss", "mean"),
        sd=("loss", "std"),
    )


def gap(ours: Mapping[int, pd.DataFrame], theirs: Mapping[int, pd.DataFrame], design: Design) -> pd.DataFrame:
    """The difference of two sides' mean losses at each evaluation that all their runs have, with its 95% interval.

    Both sides hold `evaluations` by seed; pairs share their seed. Columns tokens, mean, low and high; for one seed low
    and high are NaN. The interval is of each evaluation alone.
    """
    if design == "paired" and (both := sorted(ours.keys() & theirs.keys())):
        ours, theirs = ({seed: side[seed] for seed in both} for side in (ours, theirs))
    sides = [pd.concat([run["loss"] for run in side.values()], axis=1, join="inner") for side in (ours, theirs)]
    index = sides[0].index.intersection(sides[1].index)
    a, b = (side.loc[index].to_numpy() for side in sides)
    tokens = pd.concat([run["tokens"] for run in ours.values()], axis=1).loc[index].mean(axis=1)
    if min(a.shape[1], b.shape[1]) < 2:
        nothing = np.full(len(index), np.nan)
        return pd.DataFrame(
            {"tokens": tokens, "mean": a.mean(axis=1) - b.mean(axis=1), "low": nothing, "high": nothing}
        )
    test = difference(a, b, design=design)
    low, high = test.interval(ALPHA)
    return pd.DataFrame({"tokens": tokens, "mean": test.mean, "low": low, "high": high}, index=index)
