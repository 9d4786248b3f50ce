"""The runs on fresh seeds, on which alone a verdict stands."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import Outcome, bounded_loss
from hpstudy.study import Study

BASELINE = "baseline"
CONFIRM_RUN = r"^confirm-(?P<tuned>tuned-lr-)?(?P<trial>\d+)-s\d+(?:-t(?P<percent>\d+))?$"
Measure = Callable[[pd.DataFrame, str], "pd.Series[float]"]
MEASURED = (Outcome.COMPLETE.value, Outcome.DIVERGED.value)


def confirmed(frames: StudyFrames, study: Study) -> pd.DataFrame:
    """The runs on fresh seeds: what `trials` holds, and run, candidate, fraction and loss.

    candidate is "search-0003", "tuned-lr-0004" or "baseline"; fraction is the share of the full budget (speed-up runs
    have less than 1); loss is val_loss, at most that of a uniform guess, which diverged runs have; NaN for runs that
    measured nothing.
    """
    trials = frames.trials.assign(run=frames.trials["run_id"].astype("str"))
    parts = trials["run"].str.extract(CONFIRM_RUN)
    trials["candidate"] = parts["tuned"].fillna("search-") + parts["trial"]
    trials.loc[(trials["phase"] == "baseline") & (trials["seed"] != study.spec.seed), "candidate"] = BASELINE
    trials["fraction"] = parts["percent"].astype("float64").fillna(100) / 100
    bounded = trials["val_loss"].map(lambda loss: bounded_loss(loss, study.vocab_size))
    trials["loss"] = bounded.where(trials["outcome"].isin(MEASURED))
    return trials[trials["candidate"].notna()].reset_index(drop=True)


def losses(runs: pd.DataFrame, candidate: str) -> pd.Series[float]:
    """The losses of the full runs that measured one, by seed."""
    return _by_seed(runs, candidate, "loss")


def complete_losses(runs: pd.DataFrame, candidate: str) -> pd.Series[float]:
    """The losses of the full runs that are complete, by seed."""
    return _by_seed(runs[runs["outcome"] == Outcome.COMPLETE.value], candidate, "loss")


def with_updates(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The runs with `updates`, the median over their steps of ||update|| / ||weights||."""
    fresh = steps[steps["run_id"].isin(runs["run"])]
    medians = fresh.groupby(fresh["run_id"].astype("str"))["train/update_to_weight"].median()
    return runs.assign(updates=runs["run"].map(medians))


def updates(runs: pd.DataFrame, candidate: str) -> pd.Series[float]:
    """The median updates of the full runs that are complete, by seed; where they are not zero."""
    return _by_seed(runs[(runs["outcome"] == Outcome.COMPLETE.value) & (runs["updates"] > 0)], candidate, "updates")


def speeds(runs: pd.DataFrame, candidate: str) -> pd.Series[float]:
    """The tokens per second of the full runs that are complete, by seed."""
    return _by_seed(runs[runs["outcome"] == Outcome.COMPLETE.value], candidate, "tok_per_sec")


def _by_seed(runs: pd.DataFrame, candidate: str, column: str) -> pd.Series[float]:
    full = runs[(runs["candidate"] == candidate) & (runs["fraction"] == 1)]
    return full.set_index("seed")[column].dropna().sort_index()


def sides(
    runs: pd.DataFrame, study: Study, candidate: str, of: Measure = losses
) -> tuple[pd.Series[float], pd.Series[float]]:
    """What candidate's and baseline's runs measured; where the design is paired, of the seeds that both have."""
    ours, theirs = of(runs, candidate), of(runs, BASELINE)
    return (ours, theirs) if study.confirm.design == "independent" else shared(ours, theirs)


def shared(ours: pd.Series[float], theirs: pd.Series[float]) -> tuple[pd.Series[float], pd.Series[float]]:
    """Both sides at the seeds that both have."""
    seeds = ours.index.intersection(theirs.index)
    return ours[seeds], theirs[seeds]


def expected(study: Study, candidate: str) -> list[str]:
    """The full runs of both sides on all seeds of the study, by id."""
    ours = [f"confirm-{candidate.removeprefix('search-')}-s{seed}" for seed in study.confirm.seeds]
    return [*ours, *(f"{BASELINE}-s{seed}" for seed in study.confirm.baseline_seeds)]


def unfinished(runs: pd.DataFrame, study: Study) -> list[str]:
    """The full runs on fresh seeds that the study will still train, as far as its candidates are known."""
    names = [name for name in runs["candidate"].unique() if name != BASELINE]
    ended = set(runs.loc[runs["outcome"].notna(), "run"])
    wanted = [run for name in names for run in expected(study, name)]
    return [run for run in dict.fromkeys(wanted) if run not in ended]


def exceptions(runs: pd.DataFrame, study: Study, candidate: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The full runs of both sides that diverged and count, and those that should count but did not measure anything."""
    full = runs[(runs["fraction"] == 1) & runs["candidate"].isin([candidate, BASELINE])]
    known = ("unfinished" if pd.isna(outcome) else str(outcome) for outcome in full["outcome"])
    outcomes = dict.fromkeys(expected(study, candidate), "not run") | dict(zip(full["run"], known, strict=True))
    diverged = tuple(run for run, outcome in outcomes.items() if outcome == Outcome.DIVERGED)
    return diverged, tuple(f"{run} ({outcome})" for run, outcome in outcomes.items() if outcome not in MEASURED)
