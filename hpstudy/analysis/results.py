"""All that a study found, for pandas, the terminal and the report: its tables, its verdict and its trials' ranking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hpstudy.analysis import frames
from hpstudy.analysis.answers import Noise, Verdict
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.region import Region, region
from hpstudy.analysis.tuned import Tuned, hparams_of, tuned
from hpstudy.analysis.verdict import noise, verdict
from hpstudy.errors import UserError
from hpstudy.hparams import RULES
from hpstudy.records import Outcome
from hpstudy.running.confirm import read_selections
from hpstudy.running.environment import accepted_changes, other_kinds
from hpstudy.statistics.race import BASELINE
from hpstudy.study import MetricName, Study, Value, load_frozen
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.study.ranking import Score, best_first, front
from hpstudy.tracking.store import RunStore

COMMIT = re.compile("[0-9a-f]{7,64}")
OPTIMIZER_COLUMNS = (
    *("run_id", "phase", "val_loss", "batch_tokens", "beta1", "beta1_halflife_tokens"),
    *("beta2", "beta2_halflife_tokens", "lr", "weight_decay", "decay_timescale_steps"),
)


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study's tables and what follows from them. Tables from W&B have no study file, so no verdict."""

    frames: StudyFrames
    store: RunStore | None  # None: from W&B

    @property
    def name(self) -> str:
        """The study's name."""
        return self.frames.name

    @property
    def trials(self) -> pd.DataFrame:
        """One row per run of any phase; see `hpstudy.analysis.frames.TRIALS_COLUMNS`."""
        return self.frames.trials

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step of every run; see `hpstudy.analysis.frames.STEPS_COLUMNS`."""
        return self.frames.steps

    def read_steps(self, metrics: Sequence[str]) -> pd.DataFrame:
        """`steps` with these metrics alone, such as ["step", "train/loss"], besides the run's columns.

        Reads no others, which is faster in a large study. Raises UserError for an unknown metric.
        """
        return self.frames.read_steps(metrics)

    @cached_property
    def study(self) -> Study:
        """The study as it was when it began, with what has grown since.

        Raises UserError for tables from W&B, and if the frozen study was edited.
        """
        if self.store is None:
            raise UserError(f"{self.name}: W&B holds no study file; load it by name from its run store")
        return load_frozen(self.store.root)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the study runs on, and what its numbers depend on; empty for tables from W&B."""
        return (self.store.read_json(ENVIRONMENT) if self.store else None) or {}

    @property
    def commit(self) -> str | None:
        """The commit of hpstudy that the study began with; None if it is unknown, or no hash but another text."""
        commit = str(self.environment.get("git_commit"))
        return commit if COMMIT.fullmatch(commit) else None

    @property
    def accepted_changes(self) -> list[str]:
        """The changes of environment under which the study was resumed, each as "torch was 2.11, is 2.13"."""
        return accepted_changes(self.environment)

    @property
    def other_kinds(self) -> dict[str, list[str]]:
        """{kind: what differs} of the machines that trained besides the kind with which the study began."""
        return other_kinds(self.environment)

    @cached_property
    def mixed_pairs(self) -> list[str]:
        """The fresh runs of the winner and its rivals that trained on another kind of machine than the baseline's.

        A pair's difference then holds that of two kinds of rounding too.
        """
        if self.store is None or not self.other_kinds:
            return []
        kinds = {view.run_id: view.header.kind for view in self.store.runs()}
        columns = self.confirmed[["run", "candidate", "seed"]].to_dict("list")
        rows = list(zip(*columns.values(), strict=True))
        baselines = {seed: kinds.get(run) for run, candidate, seed in rows if candidate == BASELINE}
        return [
            run
            for run, candidate, seed in rows
            if candidate != BASELINE and seed in baselines and kinds.get(run) != baselines[seed]
        ]

    @cached_property
    def fresh(self) -> FreshRuns:
        """The runs on fresh seeds."""
        return FreshRuns(frames=self.frames, study=self.study)

    @property
    def confirmed(self) -> pd.DataFrame:
        """The rows of `trials` on fresh seeds, with the columns run, candidate and loss."""
        return self.fresh.table

    @cached_property
    def noise(self) -> Noise | None:
        """How far the baseline varies from seed to seed, and what that lets the study detect; None below two seeds."""
        return noise(self.fresh)

    def verdict(self) -> Verdict:
        """Whether the winner beats the baseline, from fresh seeds alone; `.sentence` says it, `.contrasts` hold it."""
        return self._verdict

    @cached_property
    def _verdict(self) -> Verdict:
        return verdict(self.fresh, selections=len(read_selections(self.store)) if self.store else 1)

    @cached_property
    def tuned(self) -> Tuned | None:
        """The values of the verdict's first candidate or, before a verdict, of the search's best trial.

        None while no trial but the baseline is complete.
        """
        contrasts = self.verdict().contrasts
        ranked = self.ranked()["run_id"].astype("str")
        names = [c.candidate for c in contrasts[:1]] or [name for name in ranked if name != self.study.baseline_run_id]
        rows = self.trials[self.trials["run_id"].isin(names[:1])]
        if not len(rows):
            return None
        return tuned(self.study, names[0], rows.to_dict("records")[0], confirmed=bool(contrasts))

    @cached_property
    def region(self) -> Region | None:
        """How far the found values may move before it matters; None while the search's trials cannot say."""
        return region(self.study, self.trials, self.tuned.hparams, self.verdict().margin) if self.tuned else None

    @property
    def best(self) -> dict[str, Value]:
        """The tuned values by key, as plain numbers; empty while no trial but the baseline is complete.

        Of tables from W&B: the keys that vary between trials, as in the trial of lowest loss.
        """
        if self.store is not None:
            return self.tuned.values if self.tuned else {}
        searched, ranked = self.trials[self.trials["phase"] == "search"], best_by_loss(self.trials)
        if not len(ranked):
            return {}
        values = hparams_of(ranked.to_dict("records")[0])
        return {key: getattr(values, key) for key in RULES if searched[key].nunique() > 1}

    def one_seed_loss(self, run_id: str) -> float:
        """The loss of a complete run; NaN for any other, whose last loss is of a part of its budget."""
        rows = self.trials[self.trials["run_id"] == run_id]
        return float(rows.loc[rows["outcome"] == Outcome.COMPLETE.value, "val_loss"].mean())

    @property
    def halflives(self) -> pd.DataFrame:
        """Each run's betas as half-lives in tokens and its weight decay as a timescale in steps."""
        return self.trials[list(OPTIMIZER_COLUMNS)]

    def ranked(self, *, only_front: bool = False) -> pd.DataFrame:
        """The complete trials of the search, best first; see `hpstudy.study.ranking`.

        With `only_front`, of two objectives only the Pareto front.
        """
        metrics = self.study.metrics
        scores = best_first(metrics, _scores(self.trials))
        return _rows(self.trials, front(metrics, scores) if only_front else scores)


def best_by_loss(trials: pd.DataFrame) -> pd.DataFrame:
    """The complete trials of the search by loss, for tables without a study."""
    metrics: list[MetricName] = ["val/loss"]
    return _rows(trials, best_first(metrics, _scores(trials)))


def _scores(trials: pd.DataFrame) -> list[Score]:
    complete = trials[(trials["phase"] == "search") & (trials["outcome"] == Outcome.COMPLETE.value)]
    columns = complete[["run_id", "val_loss", "tok_per_sec"]]
    return [Score(str(run_id), loss, speed) for run_id, loss, speed in columns.itertuples(index=False)]


def _rows(trials: pd.DataFrame, scores: list[Score]) -> pd.DataFrame:
    """The rows of ranked trials, in their order."""
    position = {run_id: index for index, run_id in enumerate(trials["run_id"].astype("str"))}
    return trials.iloc[[position[score.run_id] for score in scores]]


def load(name: str, runs: str | Path = "runs") -> StudyResults:
    """The study `name` in the folder `runs`, or the tables of "wandb:ENTITY/PROJECT/STUDY". Raises as frames.load."""
    online = name.startswith(frames.WANDB_PREFIX)
    return StudyResults(frames=frames.load(name, runs), store=None if online else RunStore(Path(runs) / name))
