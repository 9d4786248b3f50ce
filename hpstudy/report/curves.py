"""Long tables of steps -> the few points and the few runs that a figure can show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hpstudy.analysis.results import StudyResults
from hpstudy.statistics.race import BASELINE
from hpstudy.study import Study
from hpstudy.study.ranking import ranks_by_loss

Floats = npt.NDArray[np.floating]

MOST_POINTS = 300  # of a curve
MOST_FAINT = 60  # search trials behind the main curves


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRuns:
    """The runs that a figure shows, by role."""

    baseline: tuple[str, ...]  # its runs on fresh seeds, or its run in the search if there are none
    candidates: dict[str, tuple[str, ...]]  # each confirmed candidate's runs on fresh seeds, the best candidate first
    faint: tuple[str, ...]  # search trials from best to worst

    @property
    def all(self) -> tuple[str, ...]:
        """Every run, once."""
        parts = (self.faint, self.baseline, *self.candidates.values())
        return tuple(dict.fromkeys(run for part in parts for run in part))


def shown_runs(results: StudyResults) -> ShownRuns:
    """The runs that the verdict rests on, and at most MOST_FAINT search trials, evenly spread from best to worst."""
    verdict, once = results.verdict(), results.study.baseline_run_id
    runs = {name: _with_loss(results, name) for name in (BASELINE, *results.fresh.candidates)}
    others = [run for run in _finished_by_rank(results) if run != once]
    return ShownRuns(
        baseline=(runs[BASELINE] or (once,)) if verdict.noise else (once,),
        candidates={contrast.candidate: runs[contrast.candidate] for contrast in verdict.contrasts},
        faint=tuple(spread(others, MOST_FAINT)),
    )


def _with_loss(results: StudyResults, candidate: str) -> tuple[str, ...]:
    full = results.fresh.full(candidate)
    return tuple(full.loc[full["loss"].notna(), "run"])


def _finished_by_rank(results: StudyResults) -> list[str]:
    """Every finished search trial: the complete ones best first, then the others."""
    trials = results.trials
    finished = trials.loc[(trials["phase"] == "search") & trials["outcome"].notna(), "run_id"].astype("str")
    return list(dict.fromkeys([*results.ranked()["run_id"].astype("str"), *finished]))


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


def band(runs: list[pd.DataFrame]) -> pd.DataFrame:
    """Columns tokens, mean and sd (NaN for one run) of val/loss: one row per evaluation with a finite loss."""
    evals = pd.concat([run.loc[run["val/loss"].notna(), ["tokens", "val/index", "val/loss"]] for run in runs])
    by_eval = evals.astype("float64").groupby("val/index")
    return by_eval.agg(tokens=("tokens", "mean"), mean=("val/loss", "mean"), sd=("val/loss", "std"))
