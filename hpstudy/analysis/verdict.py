"""Whether the search's winner beats the baseline, from runs on fresh seeds alone: tables -> values and a sentence."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hpstudy.analysis import stats
from hpstudy.analysis.confirmed import BASELINE, confirmed, exceptions, losses, sides
from hpstudy.analysis.frames import StudyFrames
from hpstudy.records import bounded_loss
from hpstudy.study import Study
from hpstudy.study.file import Design

SHOWN_DIFFERENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # nats; the study's margin joins them


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
    diverged: tuple[str, ...] = ()  # runs that count with the loss of a uniform guess
    left_out: tuple[str, ...] = ()  # runs that should count and do not, each with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far the baseline's val/loss varies from seed to seed, and what that lets a study see."""

    sd: float  # nats
    n: int
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

    contrasts: tuple[Contrast, ...]  # lowest confirmed loss first, then tuned-lr; empty before two seeds
    noise: Noise | None
    margin: float
    sentence: str


def verdict(frames: StudyFrames, study: Study, *, looks: int = 1) -> Verdict:
    """The study's answer by the design its file fixed, over all candidates that at least two fresh seeds measured.

    Equivalent: the 90% interval lies within the margin (TOST, p_equivalent <= 5%). Else better or worse: no difference
    is refuted (p <= 5%). Else undecided. Equivalence comes first, because the asker said beforehand that so small a
    difference does not matter; the sentence says where it is measurable nonetheless. Over all candidates together, a
    false better or worse comes in at most 5% of studies where none differs, and so does a false equivalent where all
    differ by the margin or more. Both hold for one look. `looks` are the choices of seeds and candidates that a verdict
    may have followed: seeds added to an undecided study, or trials to its search, are another. No later adjustment
    takes back what the first look spent (without a margin two err in 9%, by simulation, 5 seeds and 5 or 20 more), so
    none is made, and the sentence says which look it is.
    """
    runs, margin = confirmed(frames, study), study.confirm.margin
    names = [str(name) for name in runs["candidate"].unique() if name != BASELINE]
    both = {name: sides(runs, study, name) for name in names}
    judged = {name: pair for name, pair in both.items() if min(map(len, pair)) >= 2}
    tests = [stats.difference(*pair, design=study.confirm.design, margin=margin) for pair in judged.values()]
    ps = zip(stats.holm([d.p for d in tests]), stats.holm([d.p_equivalent for d in tests]), strict=True)
    contrasts = [
        _contrast(frames, runs, study, name, test, p=float(p), p_equivalent=float(q), comparisons=len(judged))
        for name, test, (p, q) in zip(judged, tests, ps, strict=True)
    ]
    contrasts.sort(key=lambda c: (c.candidate.startswith("tuned-lr"), c.difference))
    return Verdict(
        contrasts=tuple(contrasts),
        noise=noise(frames, study),
        margin=margin,
        sentence=_sentence(contrasts, [name for name in names if name not in judged], study, looks),
    )


def decide(*, difference: float, p: float, p_equivalent: float) -> Answer:
    """The answer to two tests; see `verdict`."""
    if p_equivalent <= stats.ALPHA:
        return Answer.EQUIVALENT
    if p <= stats.ALPHA:
        return Answer.BETTER if difference < 0 else Answer.WORSE
    return Answer.UNDECIDED


def noise(frames: StudyFrames, study: Study) -> Noise | None:
    """The baseline's noise over its fresh seeds; None while fewer than two have been measured.

    Powers are of two arms as noisy as the baseline and not correlated, and allow for noise that only n seeds measured.
    """
    fresh = losses(confirmed(frames, study), BASELINE)
    n, sd, margin = len(fresh), float(fresh.std(ddof=1)), study.confirm.margin
    if n < 2:
        return None
    differences = sorted({*SHOWN_DIFFERENCES, margin})
    needed = {d: stats.seeds_to_detect(d, sd * math.sqrt(2), sd_df=n - 1) for d in differences}
    return Noise(
        sd=sd,
        n=n,
        detectable=stats.detectable(sd * math.sqrt(2), n, sd_df=n - 1),
        seeds_for={d: seeds for d, seeds in needed.items() if seeds is not None},
    )


def _contrast(
    frames: StudyFrames,
    runs: pd.DataFrame,
    study: Study,
    candidate: str,
    test: stats.Difference,
    *,
    p: float,
    p_equivalent: float,
    comparisons: int,
) -> Contrast:
    ours, theirs = sides(runs, study, candidate)
    paired, n, df, difference = study.confirm.design == "paired", min(len(ours), len(theirs)), test.df, test.mean
    answer = decide(difference=difference, p=p, p_equivalent=p_equivalent)
    more = more_if_real = other = None
    if answer is Answer.UNDECIDED:
        more = stats.seeds_to_decide(test.se, df, n, margin=study.confirm.margin, comparisons=comparisons)
        total = stats.seeds_to_detect(abs(difference), test.se * math.sqrt(n), sd_df=df)
        more_if_real = None if total is None else max(total - n, 1)
    if paired:  # without shared seeds nothing tells what pairing would have saved
        unpaired_sd = math.hypot(ours.std(ddof=1), theirs.std(ddof=1))
        other = stats.seeds_for_width((test.high - test.low) / 2, unpaired_sd, 2 * df, n)
    searched = frames.trials.loc[frames.trials["run_id"] == candidate, "val_loss"]
    search_loss = bounded_loss(float(searched.iloc[0]), study.vocab_size) if len(searched) else math.nan
    diverged, left_out = exceptions(runs, study, candidate)
    return Contrast(
        candidate=candidate,
        answer=answer,
        mean=float(ours.mean()),
        se=float(ours.std()) / math.sqrt(len(ours)),
        n=len(ours),
        baseline_mean=float(theirs.mean()),
        baseline_se=float(theirs.std()) / math.sqrt(len(theirs)),
        baseline_n=len(theirs),
        difference=difference,
        low=test.low,
        high=test.high,
        p=p,
        p_equivalent=p_equivalent,
        design=study.confirm.design,
        correlation=stats.correlation(ours, theirs) if paired else None,
        more_seeds=more,
        more_seeds_if_real=more_if_real,
        other_design_seeds=other,
        search_loss=search_loss,
        optimism=search_loss - float(ours.mean()),
        diverged=diverged,
        left_out=left_out,
    )


def _sentence(contrasts: Sequence[Contrast], unjudged: Sequence[str], study: Study, looks: int) -> str:
    """The headline on the first contrast, then what a reader must know beside it."""
    if not contrasts:
        if len(study.confirm.seeds) < 2:
            return "No verdict: it takes two fresh seeds, and [confirm] seeds states fewer."
        if not study.space:
            return "No verdict: nothing is searched, so nothing is compared with the baseline."
        state = "fewer than two fresh seeds are measured" if unjudged else "nothing has been run on fresh seeds"
        return f"No verdict yet: {state} for winner and baseline; `hpstudy run {study.name}` runs them."
    first, *others = contrasts
    parts = [_headline(first, study, len(contrasts))]
    if others:
        parts.append("Also: " + ", ".join(f"{c.candidate} {c.answer} ({c.difference:+.4f})" for c in others) + ".")
    if sum(c.candidate.startswith("search") for c in contrasts) > study.confirm.top:
        parts.append("The search was extended after its winner was confirmed: winners of both times are judged.")
    if looks > 1:
        parts.append(
            f"This is look {looks} at fresh seeds: each one before it had its own chance of 5% to err, which no "
            "adjustment takes back."
        )
    if unjudged:
        parts.append(f"Not judged, for want of two seeds: {', '.join(unjudged)}.")
    if diverged := sorted({run for c in contrasts for run in c.diverged}):
        guess = bounded_loss(None, study.vocab_size)
        parts.append(f"Diverged, and counted as a uniform guess of {guess:.2f} nats: {', '.join(diverged)}.")
    if left_out := sorted({run for c in contrasts for run in c.left_out}):
        parts.append(f"Left out: {', '.join(left_out)}.")
    return " ".join(parts)


def _headline(c: Contrast, study: Study, comparisons: int) -> str:
    baseline = "the baseline" if study.overrides else "GPT-3's values"
    half_width = (c.high - c.low) / 2
    digits = min(max(1 - math.floor(math.log10(half_width)), 0), 6) if half_width > 0 else 6
    seeds = f"{c.n} paired seeds" if c.design == "paired" else f"{c.n} and {c.baseline_n} independent seeds"
    p = c.p_equivalent if c.answer is Answer.EQUIVALENT else c.p
    level = "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
    adjusted = f", adjusted for {comparisons} candidates" if comparisons > 1 else ""
    signed = f"{c.difference:+.{digits}f} nats (95% interval {c.low:+.{digits}f} to {c.high:+.{digits}f}, {seeds}"
    match c.answer:
        case Answer.BETTER | Answer.WORSE:
            low, high = sorted((abs(c.low), abs(c.high)))
            side = "lower" if c.answer is Answer.BETTER else "higher"
            return (
                f"{c.candidate} is {c.answer} than {baseline}: val loss {side} by {abs(c.difference):.{digits}f} nats "
                f"(95% interval {low:.{digits}f} to {high:.{digits}f}, {seeds}, {level}{adjusted})."
            )
        case Answer.EQUIVALENT:
            real = "; measurable, but too little to matter" if c.p <= stats.ALPHA else ""
            return (
                f"{c.candidate} and {baseline} are equivalent within the margin of {study.confirm.margin:g} nats: "
                f"val loss differs by {signed}, {level}{adjusted}){real}."
            )
        case Answer.UNDECIDED:
            return f"Undecided: {c.candidate} differs from {baseline} by {signed}){_what_it_takes(c, study)}."


def _what_it_takes(c: Contrast, study: Study) -> str:
    if c.more_seeds is None:
        no_margin = study.confirm.margin == 0
        takes = (
            "without a margin no number of seeds is sure to decide it"
            if no_margin
            else (f"not even {stats.MOST_SEEDS:,} seeds would surely decide it at this noise")
        )
    else:
        takes = f"{_more(c.more_seeds)} would decide it at this noise"
    real = c.more_seeds_if_real
    if real is not None and (c.more_seeds is None or real < c.more_seeds):
        takes += f", or {_more(real)} if the difference is truly as large as measured"
    return f"; {takes}"


def _more(seeds: int) -> str:
    return f"{seeds:,} more seed{'s' if seeds > 1 else ''}"
