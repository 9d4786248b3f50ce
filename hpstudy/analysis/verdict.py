"""Whether the search's winner beats the baseline, from runs on fresh seeds alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hpstudy.analysis import stats
from hpstudy.analysis.answers import (
    SPEED,
    Addition,
    Contrast,
    Noise,
    Relative,
    Reply,
    Verdict,
    by_speed,
    deciding,
    found_nothing,
)
from hpstudy.analysis.fresh_runs import FreshRuns
from hpstudy.analysis.wording import sentences
from hpstudy.statistics.difference import difference
from hpstudy.statistics.race import BASELINE, Answer, Finding, Rules
from hpstudy.study import Study
from hpstudy.study.schema import LEAST_LOOK

CLIPPING = {"clip_mode", "grad_clip"}  # a study that searches only these asks whether updates shrink
SHOWN_DIFFERENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # nats; the study's margin is added


def verdict(fresh: FreshRuns, *, selections: int = 1) -> Verdict:
    """The study's answer, by the rules that its file fixed; see hpstudy.statistics.race.

    There is none while a comparison is open.

    The rules keep any false claim of difference or equality to 5% of studies, whichever candidates differ. That holds
    for runs that vary normally and for one selection of candidates. `selections` counts
    the selections so far, as of a search that was extended after its verdict. Each had its own chance to err, for which
    nothing later adjusts, so the sentence says how large it is in all.

    If tokens per second are an objective, a candidate is also faster, slower or undecided, by the same test of their
    logarithms, adjusted among themselves. If they are the only objective, that is the answer.
    The first contrast answers the question: the candidate of lowest loss (or most tokens per second) among those proven
    better (or faster), or among all if none is.
    """
    study = fresh.study
    found = {} if fresh.unfinished else fresh.race.findings
    contrasts = [_contrast(fresh, finding) for (_, opponent), finding in found.items() if opponent == BASELINE]
    names = [c.candidate for c in contrasts]
    if SPEED in study.metrics:
        speeds = _relatives(fresh, names, fresh.speeds)
        contrasts = [replace(c, speed=speeds.get(c.candidate)) for c in contrasts]
    if contrasts and study.space and study.space.keys() <= CLIPPING:
        updates = _relatives(fresh, names, fresh.updates)
        contrasts = [replace(c, updates=updates.get(c.candidate)) for c in contrasts]
    contrasts.sort(key=lambda c: _rank(c, study))
    additions = tuple(_addition(finding) for (_, opponent), finding in found.items() if opponent != BASELINE)
    reply, measured = _reply(contrasts, study), noise(fresh)
    parts = sentences(contrasts, fresh, reply=reply, additions=additions, noise=measured, selections=selections)
    margin = study.confirm.margin
    return Verdict(
        contrasts=tuple(contrasts),
        noise=measured,
        margin=margin if margin is not None else contrasts[0].margin if contrasts else 0.0,
        sentence=" ".join(parts),
        headline=parts[0],
        reply=reply,
        additions=additions,
    )


def _rank(c: Contrast, study: Study) -> tuple[bool, bool, float]:
    """Sorts contrasts: the search's before other opponents, the proven ones first, then the better."""
    proven = deciding(c, study) in (Answer.BETTER, Answer.FASTER)
    speed = c.speed.ratio if c.speed else 0.0
    return c.is_opponent, not proven, -speed if by_speed(study) else c.difference


def _reply(contrasts: Sequence[Contrast], study: Study) -> Reply | None:
    """What the first candidate's answer means for the question, if the study file says so."""
    if not study.yes or not contrasts:
        return None
    answer = deciding(contrasts[0], study)
    if answer is Answer.UNDECIDED:
        return "undecided"
    if found_nothing(contrasts[0], study):
        return "nothing better found"
    return "yes" if answer.value in study.yes else "no"


def _relatives(fresh: FreshRuns, names: Iterable[str], of: Callable[[str], pd.Series[float]]) -> dict[str, Relative]:
    """Each candidate's measure over the baseline's, if enough seeds measured both."""
    both = {name: fresh.sides(name, of) for name in names}
    measured = {name: pair for name, pair in both.items() if min(map(len, pair)) >= LEAST_LOOK}
    rules = Rules.of(fresh.study)
    tests = [difference(np.log(a), np.log(b), design=rules.design) for a, b in measured.values()]
    found = {}
    for name, test in zip(measured, tests, strict=True):
        p = rules.adjusted(test.p, len(tests))
        ends = test.interval(rules.level(len(tests)))
        ratio, low, high = (math.exp(log) for log in (test.mean, *ends))
        found[name] = Relative(ratio=ratio, low=low, high=high, p=p, comparisons=len(tests))
    return found


def _addition(found: Finding) -> Addition:
    """The search's best against another opponent than the baseline."""
    candidate, opponent = found.comparison
    return Addition(
        candidate=candidate,
        opponent=opponent,
        answer=found.answer,
        difference=float(found.test.mean),
        low=found.low,
        high=found.high,
        p=found.p,
        p_equivalent=found.p_equivalent,
        n=min(map(len, found.sides)),
    )


def noise(fresh: FreshRuns) -> Noise | None:
    """The noise of the baseline's complete runs on fresh seeds; None below two.

    Powers take the noise of a seed's difference from the pairs of baseline and best candidate, if they were tested.
    Else they assume two uncorrelated arms as noisy as the baseline. They allow for noise that few seeds measured.
    """
    losses = fresh.complete_losses(BASELINE)
    n, sd, margin = len(losses), float(losses.std(ddof=1)), fresh.study.confirm.margin
    if n < 2:
        return None
    tests = {pair[0]: found.test for pair, found in fresh.race.findings.items() if pair[1] == BASELINE}
    searched = [name for name in tests if fresh.phase(name) == "search" and fresh.study.confirm.design == "paired"]
    best = min(searched, key=lambda name: float(tests[name].mean), default=None)
    pairs = int(tests[best].df) + 1 if best else 0
    difference_sd = float(tests[best].sd) if best else sd * math.sqrt(2)
    df = (pairs or n) - 1
    differences = sorted({*SHOWN_DIFFERENCES, *([margin] if margin else [])})
    needed = {d: stats.seeds_to_detect(d, difference_sd, sd_df=df) for d in differences}
    return Noise(
        sd=sd,
        n=n,
        difference_sd=difference_sd,
        pairs=pairs,
        one_seed=stats.largest_between_two(sd * math.sqrt(2), n - 1),
        detectable=stats.detectable(difference_sd, pairs or n, sd_df=df),
        seeds_for={d: seeds for d, seeds in needed.items() if seeds is not None},
    )


def _contrast(fresh: FreshRuns, found: Finding) -> Contrast:
    study, test, candidate = fresh.study, found.test, found.comparison[0]
    ours, theirs = found.sides
    diverged, left_out = fresh.exceptions(candidate)
    paired, n = study.confirm.design == "paired", min(len(ours), len(theirs))
    other = None
    if paired:  # unpaired runs do not show what pairing would have saved
        unpaired_sd = math.hypot(ours.std(ddof=1), theirs.std(ddof=1))
        level = Rules.of(study).level(found.comparisons)
        other = stats.seeds_for_width((found.high - found.low) / 2, unpaired_sd, 2 * test.df, n, level)
    search_loss, baseline_loss = fresh.search_loss(candidate), fresh.search_loss(study.baseline_run_id)
    return Contrast(
        candidate=candidate,
        phase=fresh.phase(candidate),
        answer=found.answer,
        mean=float(ours.mean()),
        se=float(ours.std(ddof=1)) / math.sqrt(len(ours)),
        n=len(ours),
        baseline_mean=float(theirs.mean()),
        baseline_se=float(theirs.std(ddof=1)) / math.sqrt(len(theirs)),
        baseline_n=len(theirs),
        difference=float(test.mean),
        low=found.low,
        high=found.high,
        p=found.p,
        p_equivalent=found.p_equivalent,
        margin=float(test.margin),
        sd=float(test.sd),
        comparisons=found.comparisons,
        looks=Rules.of(study).looks[-1],
        design=study.confirm.design,
        correlation=stats.correlation(ours, theirs) if paired else None,
        other_design_seeds=other,
        search_loss=search_loss,
        optimism=search_loss - baseline_loss - float(test.mean),
        uneven=found.uneven,
        futile=found.futile,
        diverged=diverged,
        left_out=left_out,
    )
