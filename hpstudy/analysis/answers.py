"""What a verdict is made of: values that the report, the command line and pandas read."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from hpstudy.study import Study
from hpstudy.study.file import Design

ALPHA = 0.05  # two-sided for a difference; each side of an equivalence test
SPEED = "train/tok_per_sec"
Reply = Literal["yes", "no", "undecided"]


class Answer(enum.StrEnum):
    """What fresh seeds say of a candidate against the baseline: of its loss, or of its speed."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    FASTER = "faster"
    SLOWER = "slower"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A positive measure of a candidate over the baseline's; means over seeds are geometric."""

    ratio: float
    low: float  # 95% interval of the ratio, of this candidate alone
    high: float
    p: float  # two-sided, of a ratio of 1, Holm-adjusted over the candidates
    more_seeds_if_real: int | None  # further seeds that would show a true ratio as large as the measured one


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What tuning more than the learning rate adds: the winner's val/loss less that of the tuned learning rate."""

    candidate: str
    opponent: str  # "tuned-lr-0004"
    answer: Answer
    difference: float  # nats; negative: the winner is better
    low: float  # 95% interval
    high: float
    p: float  # two-sided; a comparison beside the verdict's own, not adjusted for it
    p_equivalent: float  # TOST against the margin
    n: int  # seeds that both have

    @property
    def level(self) -> float:
        """The p value of the test that decided."""
        return self.p_equivalent if self.answer is Answer.EQUIVALENT else self.p


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One candidate against the baseline, from fresh-seed runs only; losses are val/loss in nats."""

    candidate: str  # the search trial's run id, "search-0003"; or "tuned-lr-0004"
    answer: Answer
    mean: float
    se: float
    n: int  # runs of the candidate that count
    baseline_mean: float
    baseline_se: float
    baseline_n: int
    difference: float  # candidate - baseline; negative is better
    low: float  # 95% interval of the difference, of this candidate alone
    high: float
    p: float  # two-sided, Holm-adjusted over the candidates
    p_equivalent: float  # TOST against the margin, Holm-adjusted likewise
    design: Design
    correlation: float | None  # measured over shared seeds; never decides
    more_seeds: (
        int | None
    )  # further seeds (per arm) that would decide at this noise; None when decided or not estimable
    other_design_seeds: int | None  # seeds the other design would have needed for the same interval
    search_loss: float  # the candidate's loss in the search stage; NaN where the table lacks it
    optimism: float  # search_loss - mean: negative = the search flattered it
    more_seeds_if_real: int | None = (
        None  # further seeds that would show a true difference as large as the measured one
    )
    speed: Relative | None = None  # tokens/s, where they are an objective and two seeds measured them
    updates: Relative | None = None  # ||update|| / ||weights|| of a run's median step
    diverged: tuple[str, ...] = ()  # runs that count with the loss of a uniform guess
    left_out: tuple[str, ...] = ()  # runs that should count and do not, each with the reason

    @property
    def level(self) -> float:
        """The p value of the test that decided on the loss."""
        return self.p_equivalent if self.answer is Answer.EQUIVALENT else self.p

    @property
    def pace(self) -> Answer:
        """Faster, slower, or undecided."""
        if self.speed is None or self.speed.p > ALPHA:
            return Answer.UNDECIDED
        return Answer.FASTER if self.speed.ratio > 1 else Answer.SLOWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far the baseline's val/loss varies from seed to seed, and what that lets a study see."""

    sd: float  # nats, over complete runs
    n: int
    one_seed: float  # nats by which two runs of one setting differ at most, in 95% of pairs
    detectable: float  # smallest difference that n seeds per arm detect with 80% power, two-sided 5%
    seeds_for: dict[float, int]  # difference in nats -> seeds per arm for 80% power; without those beyond MOST_SEEDS

    def __str__(self) -> str:
        """`s.d. 0.0031 nats over 3 seeds: 3 seeds detect 0.012, 8 would detect 0.005`."""
        finer = max((d for d, seeds in self.seeds_for.items() if d < self.detectable and seeds > self.n), default=None)
        more = f", {self.seeds_for[finer]:,} would detect {finer:g}" if finer else ""
        return f"s.d. {self.sd:.2g} nats over {self.n} seeds: {self.n} seeds detect {self.detectable:.2g}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The study's answer."""

    contrasts: tuple[Contrast, ...]  # best first by the first objective, then tuned-lr; empty before two seeds
    noise: Noise | None
    margin: float
    sentence: str  # the headline, and what must be known beside it
    headline: str  # its first sentence
    reply: Reply | None  # to the question, where the study file says what a yes is
    addition: Addition | None = None  # where a tuned-lr was confirmed beside a winner


def is_tuned_lr(candidate: str) -> bool:
    """Whether a candidate is the baseline with a tuned learning rate."""
    return candidate.startswith("tuned-lr")


def by_speed(study: Study) -> bool:
    """Whether tokens per second are all that the study improves, so that they decide."""
    return [objective.metric for objective in study.objectives] == [SPEED]


def deciding(contrast: Contrast, study: Study) -> Answer:
    """The answer of the two that a contrast has, on loss and on speed, which the study is about."""
    return contrast.pace if by_speed(study) else contrast.answer
