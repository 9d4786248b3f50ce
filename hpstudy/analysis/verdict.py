"""Whether the search's winner beats the baseline, from runs on fresh seeds alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hpstudy.analysis import stats
from hpstudy.analysis.answers import (
    ALPHA,
    SPEED,
    Addition,
    Answer,
    Contrast,
    Noise,
    Relative,
    Reply,
    Verdict,
    by_speed,
    deciding,
)
from hpstudy.analysis.fresh_runs import BASELINE, FreshRuns, shared
from hpstudy.analysis.wording import sentences
from hpstudy.records import bounded_loss
from hpstudy.study import Study

CLIPPING = {"clip_mode", "grad_clip"}  # a study that searches only these asks whether updates shrink
SHOWN_DIFFERENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # nats; the study's margin is added


def verdict(fresh: FreshRuns, *, selections: int = 1) -> Verdict:
    """The study's answer, by the design that its file fixed, over all candidates with at least two fresh seeds.

    There is none before every run on fresh seeds has ended, because testing after each pair would err far more often.

    - Equivalent: the 90% interval is within the margin (two one-sided tests, p_equivalent <= 5%). This comes first,
      because the asker said beforehand that so small a difference does not matter.
    - Better or worse: the difference is significant (p <= 5%).
    - Undecided: neither.

    Holm's adjustment over the candidates keeps a false better or worse to 5% of the studies in which none differs, and
    a false equivalent to 5% of those in which all differ by the margin or more. That holds for one selection of seeds
    and candidates. `selections` counts the selections so far, such as seeds added to an undecided study. Each had its
    own chance to err, for which nothing later adjusts (two err in 9% without a margin, by simulation, with 5 seeds and
    5 or 20 more), so the sentence says which selection this is.

    If tokens per second are an objective, a candidate is also faster, slower or undecided, by the same test of their
    logarithms, Holm-adjusted among themselves. If they are the only objective, that is the answer.
    The first contrast answers the question: the candidate of lowest loss (or most tokens per second) among those proven
    better (or faster), or among all if none is.
    """
    study, margin, design = fresh.study, fresh.study.confirm.margin, fresh.study.confirm.design
    both = {} if fresh.unfinished else {name: fresh.sides(name) for name in fresh.candidates}
    tested = {name: pair for name, pair in both.items() if min(map(len, pair)) >= 2}
    tests = [stats.difference(*pair, design=design, margin=margin) for pair in tested.values()]
    ps = zip(stats.holm([d.p for d in tests]), stats.holm([d.p_equivalent for d in tests]), strict=True)
    contrasts = [
        _contrast(fresh, name, test, p=float(p), p_equivalent=float(q), comparisons=len(tested))
        for name, test, (p, q) in zip(tested, tests, ps, strict=True)
    ]
    if SPEED in study.metrics:
        speeds = _relatives(fresh, tested, fresh.speeds)
        contrasts = [replace(c, speed=speeds.get(c.candidate)) for c in contrasts]
    if contrasts and study.space and study.space.keys() <= CLIPPING:
        updates = _relatives(fresh, tested, fresh.updates)
        contrasts = [replace(c, updates=updates.get(c.candidate)) for c in contrasts]
    contrasts.sort(key=lambda c: _rank(c, study))
    reply, addition, measured = _reply(contrasts, study), _addition(fresh, contrasts), noise(fresh)
    parts = sentences(contrasts, fresh, reply=reply, addition=addition, noise=measured, selections=selections)
    return Verdict(
        contrasts=tuple(contrasts),
        noise=measured,
        margin=margin,
        sentence=" ".join(parts),
        headline=parts[0],
        reply=reply,
        addition=addition,
    )


def _rank(c: Contrast, study: Study) -> tuple[bool, bool, float]:
    """Sorts contrasts: the search's before the tuned lr, the proven ones first, then the better."""
    proven = deciding(c, study) in (Answer.BETTER, Answer.FASTER)
    speed = c.speed.ratio if c.speed else 0.0
    return c.is_tuned_lr, not proven, -speed if by_speed(study) else c.difference


def decide(*, difference: float, p: float, p_equivalent: float) -> Answer:
    """The answer of two tests; see `verdict`."""
    if p_equivalent <= ALPHA:
        return Answer.EQUIVALENT
    if p <= ALPHA:
        return Answer.BETTER if difference < 0 else Answer.WORSE
    return Answer.UNDECIDED


def _reply(contrasts: Sequence[Contrast], study: Study) -> Reply | None:
    """What the first candidate's answer means for the question, if the study file says so."""
    if not study.yes or not contrasts:
        return None
    answer = deciding(contrasts[0], study)
    if answer is Answer.UNDECIDED:
        return "undecided"
    return "yes" if answer.value in study.yes else "no"


def _relatives(fresh: FreshRuns, names: Iterable[str], of: Callable[[str], pd.Series[float]]) -> dict[str, Relative]:
    """Each candidate's measure over the baseline's, if two seeds measured both."""
    both = {name: fresh.sides(name, of) for name in names}
    measured = {name: pair for name, pair in both.items() if min(map(len, pair)) >= 2}
    design, comparisons = fresh.study.confirm.design, len(measured)
    tests = [stats.difference(np.log(a), np.log(b), design=design, margin=0) for a, b in measured.values()]
    found = {}
    for (name, pair), test, p in zip(measured.items(), tests, stats.holm([test.p for test in tests]), strict=True):
        n = min(map(len, pair))
        total = stats.seeds_to_detect(abs(test.mean), test.se * math.sqrt(n), sd_df=test.df, comparisons=comparisons)
        ratio, low, high = (math.exp(log) for log in (test.mean, test.low, test.high))
        more = None if total is None or p <= ALPHA else max(total - n, 1)
        found[name] = Relative(ratio=ratio, low=low, high=high, p=float(p), more_seeds_if_real=more)
    return found


def _addition(fresh: FreshRuns, contrasts: Sequence[Contrast]) -> Addition | None:
    """The search's best against the tuned learning rate, always paired, because they share their seeds.

    Both are the best of their searches, so that no fresh seed has chosen them.
    """
    by_search = sorted(contrasts, key=lambda c: c.search_loss)
    winner = next((c.candidate for c in by_search if not c.is_tuned_lr), None)
    opponent = next((c.candidate for c in by_search if c.is_tuned_lr), None)
    if winner is None or opponent is None:
        return None
    ours, theirs = shared(fresh.losses(winner), fresh.losses(opponent))
    if len(ours) < 2:
        return None
    test = stats.difference(ours, theirs, design="paired", margin=fresh.study.confirm.margin)
    return Addition(
        candidate=winner,
        opponent=opponent,
        answer=decide(difference=test.mean, p=float(test.p), p_equivalent=float(test.p_equivalent)),
        difference=test.mean,
        low=test.low,
        high=test.high,
        p=float(test.p),
        p_equivalent=float(test.p_equivalent),
        n=len(ours),
    )


def noise(fresh: FreshRuns) -> Noise | None:
    """The noise of the baseline's complete runs on fresh seeds; None below two.

    Powers assume two uncorrelated arms, both as noisy as the baseline, and allow for noise measured by only n seeds.
    """
    losses = fresh.complete_losses(BASELINE)
    n, sd, margin = len(losses), float(losses.std(ddof=1)), fresh.study.confirm.margin
    if n < 2:
        return None
    differences = sorted({*SHOWN_DIFFERENCES, margin})
    needed = {d: stats.seeds_to_detect(d, sd * math.sqrt(2), sd_df=n - 1) for d in differences}
    return Noise(
        sd=sd,
        n=n,
        one_seed=stats.largest_between_two(sd, n - 1),
        detectable=stats.detectable(sd * math.sqrt(2), n, sd_df=n - 1),
        seeds_for={d: seeds for d, seeds in needed.items() if seeds is not None},
    )


def _contrast(
    fresh: FreshRuns, candidate: str, test: stats.Difference, *, p: float, p_equivalent: float, comparisons: int
) -> Contrast:
    study = fresh.study
    ours, theirs = fresh.sides(candidate)
    diverged, left_out = fresh.exceptions(candidate)
    if diverged:
        p_equivalent = 1.0  # the loss of a uniform guess is no measurement of equality
    paired, n, df, difference = study.confirm.design == "paired", min(len(ours), len(theirs)), test.df, test.mean
    answer = decide(difference=difference, p=p, p_equivalent=p_equivalent)
    more = more_if_real = other = None
    if answer is Answer.UNDECIDED:
        more = stats.seeds_to_decide(test.se, df, n, margin=study.confirm.margin, comparisons=comparisons)
        sd = test.se * math.sqrt(n)
        total = stats.seeds_to_detect(abs(difference), sd, sd_df=df, comparisons=comparisons)
        more_if_real = None if total is None else max(total - n, 1)
    if paired:  # unpaired runs do not show what pairing would have saved
        unpaired_sd = math.hypot(ours.std(ddof=1), theirs.std(ddof=1))
        other = stats.seeds_for_width((test.high - test.low) / 2, unpaired_sd, 2 * df, n)
    trials = fresh.frames.trials
    searched = trials.loc[trials["run_id"] == candidate, "val_loss"]
    search_loss = bounded_loss(float(searched.iloc[0]), study.vocab_size) if len(searched) else math.nan
    return Contrast(
        candidate=candidate,
        phase=fresh.phase(candidate),
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
