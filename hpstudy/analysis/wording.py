"""The sentences of a verdict. They say what a reader must know, and only what the values hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpstudy.analysis.answers import Addition, Contrast, Noise, Relative, Reply, by_speed, deciding, found_nothing
from hpstudy.analysis.departures import departures
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.numbers import decimals, interval_decimals, listed, p_text
from hpstudy.records import bounded_loss, trial_phase
from hpstudy.statistics.difference import ALPHA
from hpstudy.statistics.race import BASELINE, Answer
from hpstudy.study import Study, run_command
from hpstudy.study.schema import LEAST_LOOK


def sentences(
    contrasts: Sequence[Contrast],
    fresh: FreshRuns,
    *,
    reply: Reply | None,
    additions: Sequence[Addition],
    noise: Noise | None,
    selections: int,
) -> list[str]:
    """The headline about the first contrast, beginning with the reply, then what a reader must know besides."""
    study = fresh.study
    tested = {c.candidate for c in contrasts}
    untested = [name for name in fresh.candidates if name not in tested]
    if not contrasts:
        return [_no_verdict(fresh, noise, untested, chosen=selections > 0)]
    first, *others = contrasts
    headline = _headline(first, study)
    trials = fresh.num_trials
    parts = [_lead(first, study, reply, trials) + headline]
    if found_nothing(first, study) and trials:
        parts.append(_search_power(trials))
    if first.uneven:
        parts.append(f"Its runs or the baseline's are uneven: {first.uneven}. A few of them say little about others.")
    if first.futile:
        parts.append(f"More seeds, up to {first.looks}, would hardly have decided it.")
    if study.spec.tokens is not None and (steps := _steps(first, fresh)):
        parts.append(steps)
    if first.updates:
        parts.append(
            f"Its updates are {first.updates.ratio:.3f} times the baseline's (95% interval {first.updates.low:.3f} to "
            f"{first.updates.high:.3f}), measured as the median step's ‖update‖ / ‖weights‖."
        )
    if not study.spec.confirm_val and first.answer is not Answer.UNDECIDED:
        parts.append("The search chose it on the same validation text.")
    if others:
        each = (f"{c.candidate} {deciding(c, study)} ({_short(c, study)})" for c in others)
        parts.append("Also: " + ", ".join(each) + ".")
    parts += map(_added, additions)
    if seeds := [c.n for c in contrasts if c.answer is not Answer.UNDECIDED and not c.uneven]:
        parts.append(_tail(min(seeds)))
    if sum(not c.is_opponent for c in contrasts) > study.confirm.top:
        parts.append("The search was extended after its winner was confirmed: the winners of both times are tested.")
    if selections > 1:
        parts.append(
            f"Candidates or seeds were chosen {selections} times, each time with its own chance to err: in all up to "
            f"{min(1.0, selections * ALPHA):.0%} where nothing differs."
        )
    if untested:
        parts.append(f"Not tested, because fewer than {LEAST_LOOK} seeds measured both sides: {', '.join(untested)}.")
    if diverged := sorted({run for c in contrasts for run in c.diverged}):
        guess = bounded_loss(None, study.vocab_size)
        parts.append(f"Diverged, and counted as a uniform guess of {guess:.2f} nats: {', '.join(diverged)}.")
    if left_out := sorted({run for c in contrasts for run in c.left_out}):
        parts.append(f"Left out: {', '.join(left_out)}.")
    return parts


def _no_verdict(fresh: FreshRuns, noise: Noise | None, untested: Sequence[str], *, chosen: bool) -> str:
    study, runs, missing = fresh.study, fresh.table, fresh.unfinished
    resume = f"`{run_command(fresh.frames.runs / study.name)}` resumes the study"
    if len(study.seeds) < LEAST_LOOK:
        return f"No verdict: it takes {LEAST_LOOK} fresh seeds, and [confirm] seeds states fewer."
    if not study.space and noise:
        se, mean = noise.sd / math.sqrt(noise.n), fresh.complete_losses(BASELINE).mean()
        return (
            f"Nothing is searched, so there is nothing to test: the val loss of {_opponent(study)} is "
            f"{mean:.{decimals(se)}f} ± {se:.{decimals(se)}f} nats (mean and standard error, {noise.n} seeds)."
        )
    if not study.space:
        return "No verdict: nothing is searched, so nothing is compared with the baseline."
    if missing:
        how_many = f"{len(missing)} runs on fresh seeds have" if len(missing) > 1 else "one run on a fresh seed has"
        return f"No verdict yet: {how_many} not ended, {_few(missing)}; {resume}."
    if untested:
        outcomes = runs[runs["candidate"].isin([BASELINE, *untested]) & runs["loss"].isna()]
        failed = [f"{run} ({outcome})" for run, outcome in outcomes[["run", "outcome"]].values]
        return f"No verdict: fewer than {LEAST_LOOK} seeds measured both sides; these have no loss: {_few(failed)}."
    if len(runs) and chosen:  # before that the baseline may have trained ahead
        slow = " and no slower than the baseline" if len(study.metrics) > 1 else ""
        return f"No verdict: the search found no candidate; no other trial is complete{slow}."
    return f"No verdict yet: winner and baseline have not run on fresh seeds; {resume}."


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _added(addition: Addition) -> str:
    digits = interval_decimals(addition.low, addition.high)
    ends = f"95% interval {addition.low:+.{digits}f} to {addition.high:+.{digits}f}, {addition.n} paired seeds"
    measured = f"{addition.difference:+.{digits}f} nats ({ends})"
    of_batch = trial_phase(addition.opponent) == "batch"
    tuned = "the batch" if of_batch else "lr"
    which = "which has GPT-3's values at its batch" if of_batch else "which tunes only lr"
    against = f"{addition.opponent}, {which}: {measured}"
    match addition.answer:
        case Answer.EQUIVALENT:
            return f"What {addition.candidate} tunes besides {tuned} adds nothing that matters over {against}."
        case Answer.UNDECIDED:
            return (
                f"Whether {addition.candidate} gains from tuning more than {tuned} is undecided: it differs from "
                f"{addition.opponent}, {which}, by {measured}."
            )
        case answer:
            return f"{addition.candidate} is {answer} than {against}."


def _opponent(study: Study) -> str:
    """The baseline, with the keys in which it differs from GPT-3."""
    keys = [departure.key for departure in departures(study)]
    return f"the baseline (GPT-3's values except for {listed(keys)})" if keys else "GPT-3's values"


def _short(c: Contrast, study: Study) -> str:
    return f"{c.speed.ratio:.2f}x" if by_speed(study) and c.speed else f"{c.difference:+.4f}"


def _headline(c: Contrast, study: Study) -> str:
    paired = f"{c.n} paired seeds" + (f" of at most {c.looks}" if study.confirm.looks else "")
    seeds = paired if c.design == "paired" else f"{c.n} and {c.baseline_n} independent seeds"
    comparisons = c.speed.comparisons if by_speed(study) and c.speed else c.comparisons
    adjusted = f", adjusted for {comparisons} comparisons" if comparisons > 1 else ""
    if by_speed(study):
        return _speed_headline(c, study, seeds, adjusted)
    speed = f" It trains at {_times(c.speed)})." if c.speed else ""
    return _loss_headline(c, study, seeds, adjusted) + speed


def _loss_headline(c: Contrast, study: Study, seeds: str, adjusted: str) -> str:
    baseline, digits = _opponent(study), interval_decimals(c.low, c.high)
    level = p_text(c.level) + adjusted
    signed = f"{c.difference:+.{digits}f} nats (95% interval {c.low:+.{digits}f} to {c.high:+.{digits}f}, {seeds}"
    match c.answer:
        case Answer.EQUIVALENT:
            real = "; measurable, but too little to matter" if c.p <= ALPHA else ""
            return (
                f"{c.candidate} and {baseline} are equivalent {_margin(c, study)}: "
                f"val loss differs by {signed}, {level}){real}."
            )
        case Answer.UNDECIDED:
            return f"Undecided: {c.candidate} differs from {baseline} by {signed}, {level})."
        case _:
            low, high = (c.low, c.high) if c.difference > 0 else (-c.high, -c.low)
            side = "lower" if c.answer is Answer.BETTER else "higher"
            return (
                f"{c.candidate} is {c.answer} than {baseline}: val loss {side} by {abs(c.difference):.{digits}f} nats "
                f"(95% interval {low:.{digits}f} to {high:.{digits}f}, {seeds}, {level})."
            )


def _margin(c: Contrast, study: Study) -> str:
    """How small a difference is shown to be, in nats and in standard deviations of a seed's difference."""
    if study.confirm.margin is None:
        return (
            "relative to the noise, as they differ by less than one standard deviation of a seed's difference "
            f"(measured: {c.margin:.2g} nats)"
        )
    sds = f", {c.margin / c.sd:.2g} standard deviations of a seed's difference" if c.sd else ""
    return f"within the margin of {c.margin:g} nats{sds}"


def _speed_headline(c: Contrast, study: Study, seeds: str, adjusted: str) -> str:
    baseline, digits = _opponent(study), interval_decimals(c.low, c.high)
    loss = f"Its val loss differs by {c.difference:+.{digits}f} nats ({c.answer})."
    if c.speed is None:
        return f"Undecided: fewer than {LEAST_LOOK} seeds measured the speed of {c.candidate} and of {baseline}. {loss}"
    measured = f"{_times(c.speed)}, {seeds}, {p_text(c.speed.p)}{adjusted})"
    if c.pace is Answer.UNDECIDED:
        return f"Undecided: {c.candidate} trains at {measured} of {baseline}. {loss}"
    return f"{c.candidate} is {c.pace} than {baseline}: {measured}. {loss}"


def _times(speed: Relative) -> str:
    return f"{speed.ratio:.2f} times the tokens per second (95% interval {speed.low:.2f} to {speed.high:.2f}"


def _search_power(trials: int) -> str:
    """How good values a search of so many trials may have missed."""
    missed = 1 - ALPHA ** (1 / trials)
    return (
        f"So many trials, drawn at random, miss the best {missed:.0%} of the space in one search of twenty: better "
        "values may exist."
    )


def _lead(first: Contrast, study: Study, reply: Reply | None, trials: int) -> str:
    """What the headline begins with: yes, no, or that a search has found nothing."""
    if found_nothing(first, study):
        word = "faster" if by_speed(study) else "better"
        return f"No {word} values were found in {trials} trial{'s' if trials > 1 else ''}: "
    return f"{reply.capitalize()}: " if reply in ("yes", "no") else ""


def _tail(seeds: int) -> str:
    """What runs that all went well do not exclude: the largest share of bad ones that shows none with 5% chance."""
    share = 1 - ALPHA ** (1 / seeds)
    further = f"up to {share:.0%} of either side's further runs may still do"
    return f"No fresh run went badly wrong; of {seeds} seeds, {further}."


def _steps(c: Contrast, fresh: FreshRuns) -> str:
    """Equal tokens are not equal steps: says so if the sides differ in them."""
    ours, theirs = (fresh.steps(side) for side in (c.candidate, BASELINE))
    if not abs(ours - theirs) >= 0.5:  # or one is not a number
        return ""
    return f"At equal tokens it took {ours:,.0f} steps, the baseline {theirs:,.0f}."
