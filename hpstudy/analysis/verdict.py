"""The values of a verdict, and the runs it rests on."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pandas as pd

from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import Outcome, bounded_loss
from hpstudy.study import Study
from hpstudy.study.file import Design

BASELINE = "baseline"
CONFIRM_RUN = r"^confirm-(?P<tuned>tuned-lr-)?(?P<trial>\d+)-s\d+(?:-t(?P<percent>\d+))?$"


class Answer(enum.StrEnum):
    """What fresh seeds say of a candidate against the baseline."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One candidate against the baseline, from fresh-seed runs only; losses are val/loss in nats."""

    candidate: str  # the search trial's run id, "search-0003"; or "tuned-lr-0004"
    answer: Answer
    mean: float
    se: float
    n: int
    baseline_mean: float
    baseline_se: float
    baseline_n: int
    difference: float  # candidate - baseline; negative is better
    low: float  # 95% interval of the difference
    high: float
    p: float
    p_equivalent: float
    design: Design
    correlation: float | None
    more_seeds: int | None
    other_design_seeds: int | None
    search_loss: float
    optimism: float  # search_loss - mean: negative = the search flattered it
    diverged: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far the baseline's val/loss varies from seed to seed, and what that lets a study see."""

    sd: float
    n: int
    detectable: float
    seeds_for: dict[float, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The study's answer."""

    contrasts: tuple[Contrast, ...]
    noise: Noise | None
    margin: float
    sentence: str


def verdict(frames: StudyFrames, study: Study) -> Verdict:  # noqa: ARG001
    """No verdict: a placeholder until the statistics land."""
    sentence = "Undecided: no run on fresh seeds has been made yet."
    return Verdict(contrasts=(), noise=None, margin=study.confirm.margin, sentence=sentence)


def confirmed(frames: StudyFrames, study: Study) -> pd.DataFrame:
    """The runs on fresh seeds, of candidates and baseline: run, candidate, seed, fraction, loss and what `trials` holds."""
    trials = frames.trials.assign(run=frames.trials["run_id"].astype("str"))
    parts = trials["run"].str.extract(CONFIRM_RUN)
    trials["candidate"] = parts["tuned"].fillna("search-") + parts["trial"]
    trials.loc[(trials["phase"] == "baseline") & (trials["seed"] != study.spec.seed), "candidate"] = BASELINE
    trials["fraction"] = parts["percent"].astype("float64").fillna(100) / 100
    bounded = trials["val_loss"].map(lambda loss: bounded_loss(loss, study.vocab_size))
    trials["loss"] = bounded.where(trials["outcome"].isin([Outcome.COMPLETE, Outcome.DIVERGED]))
    return trials[trials["candidate"].notna()].reset_index(drop=True)
