"""The runs on fresh seeds, on which alone a verdict stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import (
    MEASURED,
    Outcome,
    Phase,
    baseline_run_id,
    bounded_loss,
    confirm_run_id,
    counted_loss,
    trial_phase,
)
from hpstudy.statistics.race import BASELINE, Comparison, Fresh, Race, Rules, comparisons
from hpstudy.study import Study

Series = pd.Series


@dataclass(frozen=True, kw_only=True)
class FreshRuns:
    """A study's runs on fresh seeds."""

    frames: StudyFrames
    study: Study

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of `trials` on fresh seeds that count, with the columns run, candidate and loss.

        Runs that trained ahead of a look do not count once all is decided, so that no verdict depends on timing.
        candidate is the repeated trial, "search-0003", "tuned-lr-0004" or "batch-0003", or "baseline". loss is
        val_loss, but at most the loss of a uniform guess, which diverged runs get; NaN for runs that measured nothing.
        """
        counted = self._all["candidate"].map(self._judged_seeds)
        judged = np.array([seed in seeds for seed, seeds in zip(self._all["seed"], counted, strict=True)], bool)
        return self._all[judged].reset_index(drop=True)

    @cached_property
    def _all(self) -> pd.DataFrame:
        trials = self.frames.trials.assign(run=self.frames.trials["run_id"].astype("str"))
        trials["candidate"] = trials["of"]
        fresh_baseline = (trials["phase"] == "baseline") & (trials["seed"] != self.study.spec.seed)
        trials.loc[fresh_baseline, "candidate"] = BASELINE
        ends = zip(trials["outcome"], trials["val_loss"], strict=True)
        trials["loss"] = np.array([counted_loss(*end, self.study.vocab_size) for end in ends], float)
        return trials[trials["candidate"].notna()].reset_index(drop=True)

    @property
    def ahead(self) -> set[str]:
        """The ids of the runs that trained ahead of a look that was not needed. They do not count."""
        return set(self._all["run"]) - set(self.table["run"])

    @cached_property
    def candidates(self) -> list[str]:
        """The trials that were confirmed."""
        return [str(name) for name in self._all["candidate"].unique() if name != BASELINE]

    @cached_property
    def race(self) -> Race:
        """What the runs decide, and which comparisons are open."""
        return Rules.of(self.study).race(self._comparisons, {side: self._ended(side) for side in self._seeds})

    @cached_property
    def _comparisons(self) -> list[Comparison]:
        return comparisons({name: self.search_loss(name) for name in self.candidates})

    @cached_property
    def _seeds(self) -> dict[str, tuple[int, ...]]:
        """Each side's seeds, in the order in which they train."""
        return {BASELINE: self.study.baseline_seeds} | dict.fromkeys(self.candidates, self.study.seeds)

    @cached_property
    def _judged_seeds(self) -> dict[str, Collection[int]]:
        """Each side's seeds that count: of its looks, those of the look that is under way included."""
        judged: dict[str, int] = {}
        for pair in self._comparisons:
            judged |= {side: max(self.race.needed(pair), judged.get(side, 0)) for side in pair}
        everything: dict[str, Collection[int]] = {
            side: set(self._all.loc[self._all["candidate"] == side, "seed"]) for side in self._seeds
        }
        if self.study.confirm.looks is None:
            return everything
        return {side: self._seeds[side][: judged.get(side, len(seeds))] for side, seeds in everything.items()}

    def _ended(self, side: str) -> list[Fresh | None]:
        """A side's runs of the full budget in the order of its seeds."""
        rows = self._all[(self._all["candidate"] == side) & (self._all["fraction"] == 1) & self._all["outcome"].notna()]
        ended = {
            int(seed): Fresh(loss=None if math.isnan(loss) else loss, diverged=outcome == Outcome.DIVERGED)
            for seed, loss, outcome in zip(rows["seed"], rows["loss"], rows["outcome"], strict=True)
        }
        return [ended.get(seed) for seed in self._seeds[side]]

    @property
    def num_trials(self) -> int:
        """The trials of the search, the baseline's own apart."""
        trials = self.frames.trials
        return int(((trials["phase"] == "search") & (trials["run_id"] != self.study.baseline_run_id)).sum())

    def full(self, candidate: str) -> pd.DataFrame:
        """A candidate's runs, or the baseline's, of the full budget."""
        return self.table[(self.table["candidate"] == candidate) & (self.table["fraction"] == 1)]

    def phase(self, candidate: str) -> Phase:
        """The phase of the trial that a candidate is."""
        trials = self.frames.trials
        found = trials.loc[trials["run_id"] == candidate, "phase"]
        return found.iloc[0] if len(found) else trial_phase(candidate)

    def search_loss(self, trial: str) -> float:
        """A trial's loss on the search's seed, bounded as in `table`; NaN if it is unknown."""
        trials = self.frames.trials
        found = trials.loc[trials["run_id"] == trial, "val_loss"]
        return bounded_loss(float(found.iloc[0]), self.study.vocab_size) if len(found) else math.nan

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

    def steps(self, candidate: str) -> float:
        """The mean steps of the full complete runs; NaN without any."""
        return float(self._complete(candidate)["steps"].astype("float64").mean())

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
        """The full runs that the open comparisons have still to train, by id."""
        ended = set(self._all.loc[self._all["outcome"].notna(), "run"])
        sides = dict.fromkeys(side for pair in self.race.open for side in pair)
        wanted = [run for side in sides for run in self._run_ids(side, self.race.seeds)]
        return [run for run in dict.fromkeys(wanted) if run not in ended]

    def _run_ids(self, side: str, seeds: int) -> list[str]:
        """The ids of a side's first runs of the full budget."""
        return [
            baseline_run_id(seed) if side == BASELINE else confirm_run_id(side, seed)
            for seed in self._seeds[side][:seeds]
        ]

    def exceptions(self, candidate: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(full runs of both sides that diverged and count, those that measured nothing, each with the reason).

        Of the seeds at which the candidate was judged.
        """
        full = pd.concat([self.full(candidate), self.full(BASELINE)])
        known = ("unfinished" if pd.isna(outcome) else str(outcome) for outcome in full["outcome"])
        found = self.race.findings.get((candidate, BASELINE))
        seeds = found.seeds if found else self.race.seeds
        expected = [*self._run_ids(candidate, seeds), *self._run_ids(BASELINE, seeds)]
        found_outcomes = dict(zip(full["run"], known, strict=True))
        outcomes = {run: found_outcomes.get(run, "not run") for run in expected}
        diverged = tuple(run for run, outcome in outcomes.items() if outcome == Outcome.DIVERGED)
        return diverged, tuple(f"{run} ({outcome})" for run, outcome in outcomes.items() if outcome not in MEASURED)


def shared(ours: Series[float], theirs: Series[float]) -> tuple[Series[float], Series[float]]:
    """Both sides at the seeds that both have."""
    seeds = ours.index.intersection(theirs.index)
    return ours[seeds], theirs[seeds]


def _by_seed(runs: pd.DataFrame, column: str) -> Series[float]:
    return runs.set_index("seed")[column].dropna().sort_index()
