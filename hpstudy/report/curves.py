"""Long tables of steps -> the few points and the few runs that a figure can show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hpstudy.analysis.answers import Verdict
from hpstudy.analysis.confirmed import BASELINE, confirmed
from hpstudy.analysis.frames import StudyFrames
from hpstudy.running.confirming import baseline_run_id
from hpstudy.study import Study

Floats = npt.NDArray[np.floating]

MOST_POINTS = 300  # of a curve
MOST_FAINT = 60  # search trials behind the curves that matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Which runs a figure shows, and in which part."""

    baseline: tuple[str, ...]  # its runs on fresh seeds; while there are none, its run in the search
    candidates: dict[str, tuple[str, ...]]  # each confirmed candidate's runs on fresh seeds, the best candidate first
    faint: tuple[str, ...]  # search trials from the best to the worst

    @property
    def all(self) -> tuple[str, ...]:
        """Every run of the cast, once."""
        parts = (self.faint, self.baseline, *self.candidates.values())
        return tuple(dict.fromkeys(run for part in parts for run in part))


def cast(frames: StudyFrames, study: Study, verdict: Verdict) -> Cast:
    """The runs on which the verdict rests, and at most MOST_FAINT search trials, evenly spread from best to worst."""
    fresh = confirmed(frames, study)
    fresh = fresh[fresh["loss"].notna() & (fresh["fraction"] == 1)]
    runs = {str(name): tuple(group["run"]) for name, group in fresh.groupby("candidate")}
    once = baseline_run_id(study)
    search = frames.trials[(frames.trials["phase"] == "search") & frames.trials["outcome"].notna()]
    ranked = search.sort_values(objective_column(study), ascending=not _maximizes(study))["run_id"].astype("str")
    return Cast(
        baseline=runs.get(BASELINE, (once,)) if verdict.noise else (once,),
        candidates={contrast.candidate: runs.get(contrast.candidate, ()) for contrast in verdict.contrasts},
        faint=tuple(spread([run for run in ranked if run != once], MOST_FAINT)),
    )


def objective_column(study: Study) -> str:
    """The column of `trials` that ranks them: the loss wherever it is an objective."""
    return "val_loss" if any(o.metric == "val/loss" for o in study.objectives) else "tok_per_sec"


def best_first(trials: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The complete search trials that have a finite value of the objective, the best first."""
    column = objective_column(study)
    complete = trials[(trials["phase"] == "search") & (trials["outcome"] == "complete") & trials[column].notna()]
    return complete.sort_values(column, ascending=not _maximizes(study), kind="stable")


def _maximizes(study: Study) -> bool:
    return objective_column(study) == "tok_per_sec"


def spread(ranked: list[str], most: int) -> list[str]:
    """At most `most` of a list, first and last among them, at even distances."""
    if len(ranked) <= most:
        return ranked
    return [ranked[index] for index in np.linspace(0, len(ranked) - 1, most).round().astype(int)]


def by_run(steps: pd.DataFrame, wanted: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The steps of each wanted run that has any, as slices that copy nothing; steps lie in order of their runs."""
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
    """A curve's mean in each of at most `windows` windows, at the windows' ends: for shares and rates."""
    xs, ys = x.to_numpy("float64"), y.to_numpy("float64")
    parts = np.array_split(np.arange(len(xs)), min(windows, len(xs)))
    ends = [xs[part[-1]] for part in parts]
    return np.array(ends, dtype="float32"), np.array([ys[part].mean() for part in parts], dtype="float32")


def band(runs: list[pd.DataFrame]) -> pd.DataFrame:
    """Columns tokens, mean and sd (NaN of one run) of val/loss, one row per evaluation that measured a finite loss."""
    evals = pd.concat([run.loc[run["val/loss"].notna(), ["tokens", "val/index", "val/loss"]] for run in runs])
    by_eval = evals.astype("float64").groupby("val/index")
    return by_eval.agg(tokens=("tokens", "mean"), mean=("val/loss", "mean"), sd=("val/loss", "std"))
