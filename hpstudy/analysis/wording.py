"""The verdict's sentence: values -> what a reader must know, and nothing that a value does not hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from hpstudy.analysis import stats
from hpstudy.analysis.answers import Addition, Answer, Contrast, Noise, Pace, Reply
from hpstudy.records import bounded_loss
from hpstudy.study import Study


def is_tuned_lr(candidate: str) -> bool:
    """Whether a candidate is GPT-3's values with a tuned learning rate."""
    return candidate.startswith("tuned-lr")


def by_speed(study: Study) -> bool:
    """Whether tokens per second are all that the study improves, so that they decide."""
    return [objective.metric for objective in study.objectives] == ["train/tok_per_sec"]


def deciding(contrast: Contrast, study: Study) -> Answer:
    """The answer of the two that a contrast may have, loss and speed, which the study is about."""
    if not by_speed(study):
        return contrast.answer
    return contrast.pace.answer if contrast.pace else Answer.UNDECIDED


def sentence(
    contrasts: Sequence[Contrast],
    study: Study,
    *,
    reply: Reply | None,
    addition: Addition | None,
    noise: Noise | None,
    baseline: pd.Series[float],
    unjudged: Sequence[str],
    looks: int,
) -> str:
    """The reply and the headline on the first contrast, then what a reader must know beside it.

    `baseline` has its losses on fresh seeds, `unjudged` the candidates that fewer than two seeds measured.
    """
    if not contrasts:
        return _no_verdict(study, noise, baseline, unjudged)
    first, *others = contrasts
    parts = [_headline(first, study, len(contrasts))]
    if reply in ("yes", "no"):
        parts.insert(0, f"{reply.capitalize()}:")
    if others:
        told = (f"{c.candidate} {deciding(c, study)} ({_short(c, study)})" for c in others)
        parts.append("Also: " + ", ".join(told) + ".")
    if addition:
        parts.append(_added(addition))
    if sum(not is_tuned_lr(c.candidate) for c in contrasts) > study.confirm.top:
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


def _no_verdict(study: Study, noise: Noise | None, baseline: pd.Series[float], unjudged: Sequence[str]) -> str:
    if len(study.confirm.seeds) < 2:
        return "No verdict: it takes two fresh seeds, and [confirm] seeds states fewer."
    if not study.space and noise:
        se = noise.sd / math.sqrt(noise.n)
        return (
            f"Nothing is searched, so there is nothing to judge: the val loss of {_opponent(study)} is "
            f"{baseline.mean():.{_digits(se)}f} ± {se:.{_digits(se)}f} nats (mean and standard error, {noise.n} seeds)."
        )
    if not study.space:
        return "No verdict: nothing is searched, so nothing is compared with the baseline."
    state = "fewer than two fresh seeds are measured" if unjudged else "nothing has been run on fresh seeds"
    return f"No verdict yet: {state} for winner and baseline; `hpstudy run {study.name}` runs them."


def _added(addition: Addition) -> str:
    digits = _digits((addition.high - addition.low) / 2)
    ends = f"95% interval {addition.low:+.{digits}f} to {addition.high:+.{digits}f}, {addition.n} paired seeds"
    measured = f"{addition.difference:+.{digits}f} nats ({ends})"
    match addition.answer:
        case Answer.EQUIVALENT:
            return f"Tuning more than lr adds nothing that matters over {addition.opponent}: {measured}."
        case Answer.UNDECIDED:
            return f"Whether tuning more than lr adds anything over {addition.opponent} is undecided: {measured}."
        case answer:
            return f"{addition.candidate} is {answer} than {addition.opponent}, where only lr was tuned: {measured}."


def _opponent(study: Study) -> str:
    return "the baseline" if study.overrides else "GPT-3's values"


def _digits(width: float) -> int:
    """Decimals that show two digits of an error."""
    return min(max(1 - math.floor(math.log10(width)), 0), 6) if width > 0 else 6


def _short(c: Contrast, study: Study) -> str:
    return f"{c.pace.ratio:.2f}x" if by_speed(study) and c.pace else f"{c.difference:+.4f}"


def _headline(c: Contrast, study: Study, comparisons: int) -> str:
    seeds = f"{c.n} paired seeds" if c.design == "paired" else f"{c.n} and {c.baseline_n} independent seeds"
    adjusted = f", adjusted for {comparisons} candidates" if comparisons > 1 else ""
    if by_speed(study) and c.pace:
        return _speed_headline(c, c.pace, study, seeds, adjusted)
    pace = f" It trains at {_times(c.pace)})." if c.pace else ""
    return _loss_headline(c, study, seeds, adjusted) + pace


def _loss_headline(c: Contrast, study: Study, seeds: str, adjusted: str) -> str:
    baseline, digits = _opponent(study), _digits((c.high - c.low) / 2)
    level = _level(c.p_equivalent if c.answer is Answer.EQUIVALENT else c.p) + adjusted
    signed = f"{c.difference:+.{digits}f} nats (95% interval {c.low:+.{digits}f} to {c.high:+.{digits}f}, {seeds}"
    match c.answer:
        case Answer.EQUIVALENT:
            real = "; measurable, but too little to matter" if c.p <= stats.ALPHA else ""
            return (
                f"{c.candidate} and {baseline} are equivalent within the margin of {study.confirm.margin:g} nats: "
                f"val loss differs by {signed}, {level}){real}."
            )
        case Answer.UNDECIDED:
            return f"Undecided: {c.candidate} differs from {baseline} by {signed}){_what_it_takes(c, study)}."
        case _:
            low, high = sorted((abs(c.low), abs(c.high)))
            side = "lower" if c.answer is Answer.BETTER else "higher"
            return (
                f"{c.candidate} is {c.answer} than {baseline}: val loss {side} by {abs(c.difference):.{digits}f} nats "
                f"(95% interval {low:.{digits}f} to {high:.{digits}f}, {seeds}, {level})."
            )


def _speed_headline(c: Contrast, pace: Pace, study: Study, seeds: str, adjusted: str) -> str:
    baseline, digits = _opponent(study), _digits((c.high - c.low) / 2)
    loss = f"Its val loss differs by {c.difference:+.{digits}f} nats ({c.answer})."
    measured = f"{_times(pace)}, {seeds}, {_level(pace.p)}{adjusted})"
    if pace.answer is Answer.UNDECIDED:
        return f"Undecided: {c.candidate} trains at {measured} of {baseline}. {loss}"
    return f"{c.candidate} is {pace.answer} than {baseline}: {measured}. {loss}"


def _times(pace: Pace) -> str:
    return f"{pace.ratio:.2f} times the tokens per second (95% interval {pace.low:.2f} to {pace.high:.2f}"


def _level(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


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
