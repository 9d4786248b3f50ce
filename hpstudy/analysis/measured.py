"""The losses of both sides of a study: on fresh seeds if they are decided, else on the search's seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from hpstudy.analysis.numbers import decimals
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Outcome
from hpstudy.statistics.race import BASELINE

ONE_SEED_DIGITS = 3  # of a loss whose error is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The val/loss of one set of values."""

    run_id: str  # of the trial, or of the baseline's run on the search's seed
    val_loss: float | None  # nats, mean over the seeds; None if no run has one
    se: float | None  # standard error; None for one seed
    seeds: int
    diverged: bool = False  # whether all its runs did; the loss is then that of a uniform guess
    tok_per_sec: float | None  # median over the runs

    def __str__(self) -> str:
        """`3.915 ±0.008`, with no more digits than the error shows; of one seed without an error."""
        if self.diverged:
            return "diverged"
        if self.val_loss is None:
            return "-"
        if self.se is None:
            return f"{self.val_loss:.{ONE_SEED_DIGITS}f}"
        digits = decimals(self.se)
        return f"{self.val_loss:.{digits}f} ±{self.se:.{digits}f}"


def measured(results: StudyResults) -> tuple[Measured, Measured | None]:
    """The baseline, and the verdict's first candidate or the search's best trial if there is one."""
    study, found, fresh = results.study, results.tuned, results.fresh
    verdict = results.verdict()
    if verdict.contrasts:
        c = verdict.contrasts[0]
        return (
            _of(fresh.full(BASELINE), study.baseline_run_id, c.baseline_mean, c.baseline_se, c.baseline_n),
            _of(fresh.full(c.candidate), c.candidate, c.mean, c.se, c.n),
        )
    if not study.space and verdict.noise:
        losses = fresh.complete_losses(BASELINE)
        se = verdict.noise.sd / math.sqrt(verdict.noise.n)
        runs = fresh.full(BASELINE)
        return _of(runs, study.baseline_run_id, float(losses.mean()), se, len(losses)), None
    return _one_seed(results, study.baseline_run_id), _one_seed(results, found.run_id) if found else None


def _of(runs: pd.DataFrame, run_id: str, mean: float, se: float, n: int) -> Measured:
    ended = runs["outcome"].dropna()
    diverged = bool(len(ended)) and bool((ended == Outcome.DIVERGED.value).all())
    speed = _median(runs["tok_per_sec"])
    return Measured(run_id=run_id, val_loss=mean, se=se, seeds=n, diverged=diverged, tok_per_sec=speed)


def _one_seed(results: StudyResults, run_id: str) -> Measured:
    trials = results.trials
    row = trials[trials["run_id"] == run_id]
    loss = _finite(results.one_seed_loss(run_id))
    speed = _median(row["tok_per_sec"])
    return Measured(run_id=run_id, val_loss=loss, se=None, seeds=int(loss is not None), tok_per_sec=speed)


def _median(values: pd.Series[float]) -> float | None:
    return _finite(float(values.median()))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
