"""What a ladder's page shows beside its answer: values on the scale that is read, trends with size, and what is next.

lr is shown as it is also if lr_over_rule was searched; other coordinates are shown as they were searched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpstudy.analysis.ladder import LadderResults, gains
from hpstudy.analysis.numbers import interval_decimals, listed, with_sign
from hpstudy.analysis.rungs import LEVEL, OVER_RULE, Estimate, Rung
from hpstudy.files import command
from hpstudy.hparams import SEARCHABLE, raw_key
from hpstudy.search.rule_trials import sizes as rule_sizes
from hpstudy.search.rules import PUBLISHED
from hpstudy.statistics.scaling import Law, law
from hpstudy.study import FloatRange, Study, num_trials
from hpstudy.study.ladder import TARGET
from hpstudy.study.load import LOCAL
from hpstudy.study.schema import RuleName


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """Where a ladder stands, and what to do about it."""

    badge: str  # in place of an answer
    done: str  # a sentence
    advice: str  # empty if the command says it
    command: str


def bent(rung: Rung, key: str) -> bool:
    """Whether a rung's trials show an optimum inside the range."""
    return rung.optimum is not None and bool(rung.optimum.bent[rung.keys.index(key)])


def baseline_value(study: Study, key: str) -> float:
    """The baseline's value of a key; infinite as a timescale without weight decay."""
    baseline = study.baseline
    return float(getattr(baseline, raw_key(key)) if key == OVER_RULE else study.value(baseline, key))


def rule_value(study: Study, rule: RuleName, key: str) -> float | None:
    """What a published rule says of a key beside the baseline's other values; None if it says nothing."""
    raw = raw_key(key)
    said = PUBLISHED[rule].predict(rule_sizes(study), study.baseline).get(raw)
    if said is None or key in (raw, OVER_RULE):
        return said
    changes: dict[str, Any] = {raw: SEARCHABLE[raw].kind(said)}
    return float(study.value(replace(study.baseline, **changes), key))


def studies(results: LadderResults) -> dict[str, Study]:
    """The study of each size by its label: rungs, check and target."""
    ladder = results.ladder
    every = (*ladder.rungs, *filter(None, (ladder.check, ladder.target)))
    return {size.label: results.study_at(size) for size in every}


# trends


def gain_law(results: LadderResults) -> Law | None:
    """How what tuning gains over the baseline, in nats, moves with the log of a run's FLOPs; None below two rungs.

    The check counts with its own search.
    """
    found = [(rung.flops, contrast) for rung, contrast in gains(results) if contrast is not None]
    if len(found) < 2:
        return None
    flops, contrasts = zip(*found, strict=True)
    gained = np.array([-c.difference for c in contrasts])
    errors = np.array([c.sd / math.sqrt(c.n) for c in contrasts])
    return law(np.log(np.array(flops, float))[:, None], gained, errors)


def gain_sentence(results: LadderResults) -> str:
    """Whether tuning gains more or less at larger sizes; empty if it cannot be said."""
    fitted = gain_law(results)
    if fitted is None:
        return ""
    low, high = (float(end[0]) * math.log(10) for end in fitted.slope_interval(LEVEL))
    slope, digits = float(fitted.slope[0]) * math.log(10), interval_decimals(low, high)
    numbers = f"{with_sign(slope, digits)} [{with_sign(low, digits)}, {with_sign(high, digits)}] nats"
    if low <= 0 <= high:
        return f"The gain shows no clear trend: {numbers} for each tenfold compute, with a 90% interval."
    way = "grows" if slope > 0 else "shrinks"
    return f"The gain {way} with scale: {numbers} for each tenfold compute, with a 90% interval."


def slopes(results: LadderResults) -> Iterator[tuple[bool, str]]:
    """For each key whether its law has a clear slope, and the slope in words.

    `lr falls by a factor 0.62 [0.5, 0.8] for each tenfold N`.
    """
    for key, fitted in results.laws.items():
        dimension = results.rungs[-1].study.space[key]
        scale = dimension.scale if isinstance(dimension, FloatRange) else "log"
        name = f"1 − {key}" if scale == "log1m" else key
        for axis, slope, low, high in zip(
            results.ladder.axes, fitted.slope, *fitted.slope_interval(LEVEL), strict=False
        ):
            clear, times = low > 0 or high < 0, math.log(10)
            way = "shows no clear trend:" if not clear else "rises" if slope > 0 else "falls"
            ends = [end * times if scale == "linear" else math.exp(end * times) for end in (slope, low, high)]
            numbers = "{:.2f} [{:.2f}, {:.2f}]".format(*ends).replace("-", "−")
            how = ("by " if clear else "") + ("" if scale == "linear" else "a factor ")
            yield clear, f"{name} {way} {how}{numbers} for each tenfold {axis}."


def what_changed(results: LadderResults) -> list[str]:
    """What did not transfer: keys without a clear optimum or with a bend, those with a clear slope, and all others."""
    found = [*results.not_transferred()]
    if len(results.rungs) < 2:
        return [*found, "What changes with size shows from the second rung on."]
    trends = [*slopes(results)]
    found += [sentence for clear, sentence in trends if clear]
    nothing = [] if found else ["No law bends, and no slope is clear."]
    return [*nothing, *found, *(sentence for clear, sentence in trends if not clear)]


# sides and the next step


def target_file(results: LadderResults) -> Path | None:
    """Where `ladder` writes the target's study; None if there is no target, or a rung has not ended."""
    ladder = results.ladder
    if ladder.target is None or len(results.rungs) < len(ladder.rungs) or not results.laws:
        return None
    return LOCAL / f"{ladder.part(TARGET)}.toml"


def next_step(results: LadderResults) -> Next:
    """What is done and what comes next, with its command."""
    ladder, ended = results.ladder, len(results.rungs)
    again = command("run", ladder.name, results.runs)
    if ended < len(ladder.rungs):
        following = ladder.rungs[ended]
        searched = listed([rung.size.label for rung in results.rungs])
        done = f"Searched so far: {searched}." if ended else "Nothing is searched yet."
        trials = num_trials(results.study_at(following))
        return Next(
            badge=f"{ended} of {len(ladder.rungs)} rungs",
            done=done,
            advice=f"Search {following.label} with {trials} trials"
            + (", and what follows" if len(ladder.rungs) > ended + 1 else ""),
            command=again,
        )
    if ladder.check is not None and (results.answer is None or len(results.sides) < len(ladder.sides)):
        done = "All rungs are searched, and so is the check; its sides are not all trained on fresh seeds."
        if results.check is None:
            done = f"All rungs are searched; the check at {ladder.check.label} is not."
        return Next(badge="Not checked yet", done=done, advice="Check the prediction", command=again)
    done = "All rungs are searched, and the check has ended."
    if ladder.check is None:
        done = "All rungs are searched; the file states no check, so nothing has tested the prediction."
    if (path := target_file(results)) is not None:
        return Next(
            badge="Not checked",
            done=done,
            advice="Start the target from its predicted values",
            command=command("run", path.stem, results.runs),
        )
    return Next(
        badge="Not checked",
        done=done,
        advice="Name a `target` in the ladder's file, and write its study",
        command=command("ladder", ladder.name, results.runs),
    )


def answer_badge(answer: str) -> str:
    """The badge of an answer."""
    return {"holds": "Yes", "fails": "No", "undecided": "Undecided"}[answer]


def written(found: Estimate | None) -> str:
    """An estimate for a table; a dash if there is none."""
    return "-" if found is None else str(found)
