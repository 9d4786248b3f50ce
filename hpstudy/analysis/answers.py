"""The values that a verdict is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpstudy.records import OPPONENTS, Phase
from hpstudy.statistics.difference import ALPHA
from hpstudy.statistics.race import Answer
from hpstudy.study import MetricName, Study
from hpstudy.study.schema import Design

SPEED: MetricName = "train/tok_per_sec"
Reply = Literal["yes", "no", "undecided", "nothing better found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """The ratio of a positive measure, candidate over baseline. Means over seeds are geometric."""

    ratio: float
    low: float  # 95% interval, adjusted for the candidates
    high: float
    p: float  # two-sided, for a ratio of 1, adjusted for the candidates
    comparisons: int  # candidates for which it is adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What the winner adds to another opponent than the baseline: its val/loss minus the opponent's."""

    candidate: str
    opponent: str  # "tuned-lr-0004": only lr is tuned; "batch-0003": GPT-3's values at the winner's batch
    answer: Answer
    difference: float  # nats; negative: the winner is better
    low: float  # 95% interval, adjusted like p
    high: float
    p: float  # two-sided, adjusted with all comparisons of the study and for its looks
    p_equivalent: float
    n: int  # shared seeds

    @property
    def level(self) -> float:
        """The p value of the test that decided."""
        return self.p_equivalent if self.answer is Answer.EQUIVALENT else self.p


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One candidate against the baseline, from runs on fresh seeds only. Losses are val/loss in nats."""

    candidate: str  # run id of the trial: search-0003 or tuned-lr-0004
    phase: Phase  # of the trial
    answer: Answer
    mean: float
    se: float
    n: int  # runs that count
    baseline_mean: float
    baseline_se: float
    baseline_n: int
    difference: float  # candidate - baseline; negative is better
    low: float  # 95% interval, adjusted for the looks and the comparisons
    high: float
    p: float  # two-sided, adjusted likewise
    p_equivalent: float  # of a difference of the margin or more, adjusted likewise
    margin: float  # nats; smaller differences do not matter
    sd: float  # nats, of one seed's difference
    comparisons: int  # of the study, for all of which p values and intervals are adjusted
    looks: int  # seeds a side that the race would have trained at most
    design: Design
    correlation: float | None  # over shared seeds; never decides
    other_design_seeds: int | None  # seeds that the other design would have needed for the same interval
    search_loss: float  # the trial's loss in its search; NaN if unknown
    optimism: float  # difference to the baseline in the search, less the one on fresh seeds; below 0: flattered
    uneven: str = ""  # what makes its runs look like draws from more than one cluster
    futile: bool = False  # its race stopped, because more seeds would hardly have decided it
    speed: Relative | None = None  # tokens/s, if they are an objective and two seeds measured them
    updates: Relative | None = None  # ||update|| / ||weights|| of a run's median step
    diverged: tuple[str, ...] = ()  # runs that count with the loss of a uniform guess
    left_out: tuple[str, ...] = ()  # runs that should count and do not, each with the reason

    @property
    def is_opponent(self) -> bool:
        """Whether the candidate is another opponent of the winner, and none that the search has found."""
        return self.phase in OPPONENTS

    @property
    def level(self) -> float:
        """The p value of the test that decided on the loss."""
        return self.p_equivalent if self.answer is Answer.EQUIVALENT else self.p

    @property
    def pace(self) -> Answer:
        """The answer on the speed: faster, slower, or undecided."""
        if self.speed is None or self.speed.p > ALPHA:
            return Answer.UNDECIDED
        return Answer.FASTER if self.speed.ratio > 1 else Answer.SLOWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far the baseline's val/loss varies from seed to seed, and which differences that lets a study detect."""

    sd: float  # nats, over complete runs of the baseline
    n: int
    difference_sd: float  # nats, of one seed's difference: of the pairs if there are any, else sqrt(2) * sd
    pairs: int  # that it was measured with; 0: none
    one_seed: float  # 95% of the pairs of runs with equal settings differ by less, nats
    detectable: float  # smallest difference that n seeds per arm detect with 80% power, two-sided 5%
    seeds_for: dict[float, int]  # difference in nats -> seeds per arm for 80% power, up to MOST_SEEDS

    def __str__(self) -> str:
        """`s.d. 0.0031 nats over 3 seeds: 3 seeds detect 0.012, 8 would detect 0.005`."""
        n = self.pairs or self.n
        finer = max((d for d, seeds in self.seeds_for.items() if d < self.detectable and seeds > n), default=None)
        more = f", {self.seeds_for[finer]:,} would detect {finer:g}" if finer else ""
        paired = f", {self.difference_sd:.2g} between {self.pairs} pairs" if self.pairs else ""
        return f"s.d. {self.sd:.2g} nats over {self.n} seeds{paired}: {n} seeds detect {self.detectable:.2g}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The study's answer."""

    contrasts: tuple[Contrast, ...]  # best first, other opponents last; empty before a comparison is decided
    noise: Noise | None
    margin: float  # nats, of the first contrast if the study states none
    sentence: str  # the headline, and what a reader must know besides
    headline: str  # its first sentence
    reply: Reply | None  # to the question, if the study file says what yes means
    additions: tuple[Addition, ...] = ()  # if other opponents were confirmed beside a winner


def by_speed(study: Study) -> bool:
    """Whether the study improves only tokens per second, so that they decide."""
    return study.metrics == (SPEED,)


def deciding(contrast: Contrast, study: Study) -> Answer:
    """The answer that the study is about: on the speed or on the loss."""
    return contrast.pace if by_speed(study) else contrast.answer


def found_nothing(contrast: Contrast, study: Study) -> bool:
    """Whether the best of a search lost, so that the search has found nothing.

    It says nothing of values that were not tried. A grid whose every point was confirmed has tried all.
    """
    others = study.trials - (study.baseline_proposal() is not None)
    tried_all = study.budget.sampler.name == "grid" and others <= study.confirm.top
    return deciding(contrast, study) in (Answer.WORSE, Answer.SLOWER) and not tried_all
