"""Which candidates are decided, and which train more seeds: a group-sequential test of all comparisons of a study.

After each look at n seeds every open comparison is tested at a level that keeps the whole race to ALPHA (levels.py),
divided by the number of comparisons (Bonferroni). One comparison can make one kind of false claim, a difference that
is not there or an equality that is not, so the level covers both. Claims and intervals have the same level: what is
better or worse has an interval without zero. A fixed number of seeds is a race with one look.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from hpstudy.records import BASELINE as BASELINE
from hpstudy.records import OPPONENTS, trial_phase
from hpstudy.statistics.difference import ALPHA, Difference, Floats, difference
from hpstudy.statistics.levels import nominal, overall
from hpstudy.study import Study
from hpstudy.study.schema import LEAST_LOOK, Design

TAIL_SEEDS = 12  # a comparison whose runs look uneven is not decided by fewer, if the race has more
CLEAR = 5.0  # standard deviations of the wider side, beyond which uneven runs do not matter
UNEVEN = 0.01  # level of the tests that call runs uneven
LUCK = 0.1  # a comparison stops as futile if even the luck of one in ten would leave it undecided at the last look

Comparison = tuple[str, str]
"""(candidate, opponent): the candidate's losses minus the opponent's."""


class Answer(enum.StrEnum):
    """What fresh seeds say about a candidate against its opponent: about its loss, or about its speed."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    FASTER = "faster"
    SLOWER = "slower"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """How a run on a fresh seed ended."""

    loss: float | None  # nats; None: it measured nothing
    diverged: bool = False  # the loss is that of a uniform guess


Runs = Mapping[str, Sequence[Fresh | None]]
"""Each side's runs in the order of its seeds; None for a run that has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look said about one comparison."""

    comparison: Comparison
    comparisons: int  # of the study, for all of which the levels are adjusted
    answer: Answer  # better, worse, equivalent or undecided
    seeds: int  # of the look, per side
    sides: tuple[Floats, Floats]  # the losses of both sides that count, pairs if the design is paired
    test: Difference
    p: float  # two-sided, for no difference, adjusted for the looks and the comparisons
    p_equivalent: float  # for a difference of the margin or more, adjusted likewise
    low: float  # 95% interval of the difference, adjusted likewise
    high: float
    uneven: str = ""  # what makes a few seeds too few for these runs
    futile: bool = False  # more seeds would hardly have decided it

    @property
    def goes_on(self) -> bool:
        """Whether the next look tests the comparison again."""
        return self.answer is Answer.UNDECIDED and not self.futile


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How far a study's comparisons are decided."""

    findings: Mapping[Comparison, Finding]  # the last look of each that at least LEAST_LOOK seeds measured
    open: Sequence[Comparison]  # still to be decided
    seeds: int  # per side that the open ones need for their next look; 0 if none is open
    most: int  # seeds of the last look

    def needed(self, pair: Comparison) -> int:
        """The seeds per side that a comparison has needed so far; all, if too few of them had a loss."""
        if pair in self.open:
            return self.seeds
        return self.findings[pair].seeds if pair in self.findings else self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a study decides. They are fixed before its first run on a fresh seed."""

    looks: tuple[int, ...]  # seeds per side, ascending
    design: Design
    margin: float | None  # nats; None: one standard deviation of a seed's difference

    @classmethod
    def of(cls, study: Study) -> Rules:
        """A study's rules. A fixed number of seeds is one look."""
        confirm = study.confirm
        return cls(looks=confirm.looks or (len(study.seeds),), design=confirm.design, margin=confirm.margin)

    def level(self, comparisons: int) -> float:
        """The level of each of so many intervals that all hold with a chance of 95%, whenever the race stops."""
        return nominal(ALPHA / comparisons, self.looks)

    def adjusted(self, p: float, comparisons: int) -> float:
        """A p value of one look at one of so many comparisons, adjusted for all looks and all comparisons."""
        return min(1.0, comparisons * overall(float(p), self.looks))

    def race(self, comparisons: Sequence[Comparison], runs: Runs) -> Race:
        """The decisions on the runs that have ended. More runs never change what an earlier look has decided."""
        findings: dict[Comparison, Finding] = {}
        still = list(comparisons)
        for n in self.looks:
            if not still:
                break
            if any(run is None for pair in still for name in pair for run in _first(runs, name, n)):
                return Race(findings=findings, open=still, seeds=n, most=self.looks[-1])
            findings |= {found.comparison: found for found in self._look(len(comparisons), still, runs, n)}
            still = [pair for pair in still if pair not in findings or findings[pair].goes_on]
        return Race(findings=findings, open=(), seeds=0, most=self.looks[-1])

    def _look(self, comparisons: int, still: Sequence[Comparison], runs: Runs, n: int) -> Iterator[Finding]:
        """Tests the open comparisons of so many in all."""
        for pair in still:
            sides, design = self._sides(runs, pair, n), self._design(pair)
            if min(map(len, sides)) < LEAST_LOOK:
                continue
            test = difference(*sides, design=design, margin=self.margin)
            diverged = any(run and run.diverged for name in pair for run in runs[name][:n])
            uneven = "a run diverged" if diverged else _uneven(*sides)
            p, q = self.adjusted(test.p, comparisons), self.adjusted(test.p_equivalent, comparisons)
            if diverged or (uneven and self.margin is None):
                q = 1.0  # the loss of a uniform guess measures no equality, and stray runs widen a margin made of noise
            answer = decide(difference=test.mean, p=p, p_equivalent=q)
            if uneven and n < TAIL_SEEDS and n < self.looks[-1]:
                answer = Answer.UNDECIDED
            level = self.level(comparisons)
            low, high = test.interval(level)
            yield Finding(
                comparison=pair,
                comparisons=comparisons,
                answer=answer,
                seeds=n,
                sides=sides,
                test=test,
                p=p,
                p_equivalent=q,
                low=float(low),
                high=float(high),
                uneven=uneven,
                futile=answer is Answer.UNDECIDED and not uneven and self._is_futile(test, n, level),
            )

    def _design(self, pair: Comparison) -> Design:
        """Candidates share their seeds, so they are always compared in pairs."""
        return self.design if BASELINE in pair else "paired"

    def _sides(self, runs: Runs, pair: Comparison, n: int) -> tuple[Floats, Floats]:
        """The losses that count of both sides' first n seeds."""
        ours, theirs = ([run.loss if run else None for run in _first(runs, name, n)] for name in pair)
        if self._design(pair) == "paired":
            both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
            return np.array([a for a, _ in both]), np.array([b for _, b in both])
        return np.array([a for a in ours if a is not None]), np.array([b for b in theirs if b is not None])

    def _is_futile(self, test: Difference, n: int, level: float) -> bool:
        """Whether even a lucky last look would leave it undecided, if the difference is as measured.

        It binds nothing: the levels hold whether or not such a race is stopped.
        """
        most = self.looks[-1]
        if n == most or not test.se:
            return False
        root, df, luck = np.sqrt(most) / test.sd, most - 1, scipy.special.ndtri(1 - LUCK)
        shows_difference = abs(test.mean) * root + luck >= scipy.special.stdtrit(df, 1 - level / 2)
        shows_equivalence = (test.margin - abs(test.mean)) * root + luck >= scipy.special.stdtrit(df, 1 - level)
        return not bool(shows_difference or shows_equivalence)


def comparisons(losses: Mapping[str, float]) -> list[Comparison]:
    """What a study tests: every candidate against the baseline, and the best of the search against other opponents.

    `losses` holds all of them by id, with the loss in their search, on which no fresh seed has had a say. A control of
    a trial's batch is compared with that trial.
    """
    opponents = [name for name in losses if trial_phase(name) in OPPONENTS]
    searched = {name: loss for name, loss in losses.items() if name not in opponents}
    against_baseline = [(name, BASELINE) for name in [*searched, *opponents]]
    best = min(searched, key=lambda name: (math.isnan(searched[name]), searched[name]), default=None)
    among: list[Comparison] = []
    for opponent in opponents:
        of_batch = trial_phase(opponent) == "batch"
        candidate = opponent.replace("batch-", "search-", 1) if of_batch else best
        if candidate is not None and candidate in searched:
            among.append((candidate, opponent))
    return against_baseline + among


def decide(*, difference: float, p: float, p_equivalent: float) -> Answer:
    """The answer of two adjusted tests.

    - Equivalent: the difference is smaller than the margin (p_equivalent <= 5%). This comes first, because the asker
      said beforehand that so small a difference does not matter.
    - Better or worse: the difference is significant (p <= 5%).
    - Undecided: neither.
    """
    if p_equivalent <= ALPHA:
        return Answer.EQUIVALENT
    if p <= ALPHA:
        return Answer.BETTER if difference < 0 else Answer.WORSE
    return Answer.UNDECIDED


def _first(runs: Runs, name: str, n: int) -> Sequence[Fresh | None]:
    """A side's first n runs; those that are not there have not ended."""
    known = list(runs[name][:n])
    return known + [None] * (n - len(known))


def _uneven(ours: Floats, theirs: Floats) -> str:
    """Why the losses look like draws from more than one cluster, or from two very different ones; else empty.

    Empty too if the sides are so far apart that what makes them uneven would have to be CLEAR times larger to matter.
    The tests are an F test of the variances and Grubbs' test for an outlier (1969, doi:10.2307/1266761).
    """
    variances = [float(np.var(side, ddof=1)) for side in (ours, theirs)]
    if abs(ours.mean() - theirs.mean()) > CLEAR * max(variances) ** 0.5:
        return ""
    if min(variances) > 0:
        ratio = max(variances) / min(variances)
        if 2 * scipy.special.fdtrc(len(ours) - 1, len(theirs) - 1, ratio) <= UNEVEN:
            return f"one side's losses spread {np.sqrt(ratio):.2g} times as far as the other's"
    if any(map(_has_outlier, (ours, theirs))):
        return "one loss lies far from the others of its side"
    return ""


def _has_outlier(losses: Floats) -> bool:
    n, sd = len(losses), float(np.std(losses, ddof=1))
    if n < 4 or sd == 0:  # of three, one is always far from the other two
        return False
    t = scipy.special.stdtrit(n - 2, 1 - UNEVEN / (2 * n))
    return bool(np.abs(losses - losses.mean()).max() / sd > (n - 1) / np.sqrt(n) * np.sqrt(t**2 / (n - 2 + t**2)))
