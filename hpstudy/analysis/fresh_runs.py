"""The runs on fresh seeds, on which alone a verdict stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import MEASURED, Outcome, Phase, baseline_run_id, bounded_loss, confirm_run_id, trial_phase
from hpstudy.study import Study

BASELINE = "baseline"
Series = pd.Series


@dataclass(frozen=True, kw_only=True)
class FreshRuns:
    """A study's runs on fresh seeds."""

    frames: StudyFrames
    study: Study

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of `trials` on fresh seeds, with the columns run, candidate and loss.

        candidate is the repeated trial, "search-0003" or "tuned-lr-0004", or "baseline". loss is val_loss, but at most
        the loss of a uniform guess, which diverged runs get; NaN for runs that measured nothing.
        """
        trials = self.frames.trials.assign(run=self.frames.trials["run_id"].astype("str"))
        trials["candidate"] = trials["of"]
        fresh_baseline = (trials["phase"] == "baseline") & (trials["seed"] != self.study.spec.seed)
        trials.loc[fresh_baseline, "candidate"] = BASELINE
        bounded = trials["val_loss"].map(lambda loss: bounded_loss(loss, self.study.vocab_size))
        trials["loss"] = bounded.where(trials["outcome"].isin(MEASURED))
        return trials[trials["candidate"].notna()].reset_index(drop=True)

    @cached_property
    def candidates(self) -> list[str]:
        """The trials that were confirmed."""
        return [str(name) for name in self.table["candidate"].unique() if name != BASELINE]

    def full(self, candidate: str) -> pd.DataFrame:
        """A candidate's runs, or the baseline's, of the full budget."""
        return self.table[(self.table["candidate"] == candidate) & (self.table["fraction"] == 1)]

    def phase(self, candidate: str) -> Phase:
        """The phase of the trial that a candidate is."""
        trials = self.frames.trials
        found = trials.loc[trials["run_id"] == candidate, "phase"]
        return found.iloc[0] if len(found) else trial_phase(candidate)

    def losses(self, candidate: str) -> Series[float]:
        """The losses of the full runs that have one, by seed."""
        return _by_seed(self.full(candidate), "loss")

    def complete_losses(self, candidate: str) -> Series[float]:
        """The losses of the full complete runs, by seed."""
        return _by_seed(self._complete(candidate), "loss")

    def speeds(self, candidate: str) -> Series[float]:
        """The tokens per second of the full complete runs, by seed."""
        return _by_seed(self._complete(candidate), "tok_per_sec")

    def updates(self, candidate: str) -> Series[float]:
        """The median ||update|| / ||weights|| over the steps of the full complete runs, by seed, without zeros."""
        runs = self._complete(candidate)
        runs = runs.assign(updates=runs["run"].map(self._median_updates))
        return _by_seed(runs[runs["updates"] > 0], "updates")

    @cached_property
    def _median_updates(self) -> Series[float]:
        steps = self.frames.steps
        fresh = steps[steps["run_id"].isin(self.table["run"])]
        return fresh.groupby(fresh["run_id"].astype("str"))["train/update_to_weight"].median()

    def _complete(self, candidate: str) -> pd.DataFrame:
        runs = self.full(candidate)
        return runs[runs["outcome"] == Outcome.COMPLETE.value]

    def sides(
        self, candidate: str, of: Callable[[str], Series[float]] | None = None
    ) -> tuple[Series[float], Series[float]]:
        """A measure (by default the loss) of a candidate's runs and of the baseline's.

        If the design is paired, of the seeds that both have.
        """
        of = of or self.losses
        ours, theirs = of(candidate), of(BASELINE)
        return (ours, theirs) if self.study.confirm.design == "independent" else shared(ours, theirs)

    @cached_property
    def unfinished(self) -> list[str]:
        """The full runs that the study has still to train for its candidates, by id."""
        ended = set(self.table.loc[self.table["outcome"].notna(), "run"])
        wanted = [run for name in self.candidates for run in self._expected(name)]
        return [run for run in dict.fromkeys(wanted) if run not in ended]

    def exceptions(self, candidate: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(full runs of both sides that diverged and count, those that measured nothing, each with the reason)."""
        full = pd.concat([self.full(candidate), self.full(BASELINE)])
        known = ("unfinished" if pd.isna(outcome) else str(outcome) for outcome in full["outcome"])
        outcomes = dict.fromkeys(self._expected(candidate), "not run") | dict(zip(full["run"], known, strict=True))
        diverged = tuple(run for run, outcome in outcomes.items() if outcome == Outcome.DIVERGED)
        return diverged, tuple(f"{run} ({outcome})" for run, outcome in outcomes.items() if outcome not in MEASURED)

    def _expected(self, candidate: str) -> list[str]:
        """The full runs of both sides on all seeds of the study, by id."""
        confirm = self.study.confirm
        ours = [confirm_run_id(candidate, seed) for seed in confirm.seeds]
        return [*ours, *map(baseline_run_id, confirm.baseline_seeds)]


def shared(ours: Series[float], theirs: Series[float]) -> tuple[Series[float], Series[float]]:
    """Both sides at the seeds that both have."""
    seeds = ours.index.intersection(theirs.index)
    return ours[seeds], theirs[seeds]


def _by_seed(runs: pd.DataFrame, column: str) -> Series[float]:
    return runs.set_index("seed")[column].dropna().sort_index()
