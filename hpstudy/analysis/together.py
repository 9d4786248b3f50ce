"""What several studies say together: p values adjusted over all, what they have in common, and the noise they share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hpstudy.analysis.answers import by_speed, deciding
from hpstudy.analysis.numbers import listed
from hpstudy.analysis.results import StudyResults
from hpstudy.statistics.difference import ALPHA, holm
from hpstudy.statistics.race import BASELINE, Answer
from hpstudy.study import Study

LIKE = ("model", "corpus", "tokenizer", "context", "tokens", "val_tokens", "confirm_val")  # else noise differs


def adjusted_levels(studies: Sequence[StudyResults]) -> list[float | None]:
    """Each verdict's p value, adjusted by Holm over all the studies; None for a study without a verdict.

    It is the p value of the test that decided, or of no difference if none did.
    """
    levels: list[float | None] = []
    for results in studies:
        contrasts, study = results.verdict().contrasts, results.study
        if not contrasts:
            levels.append(None)
        elif by_speed(study):
            levels.append(contrasts[0].speed.p if contrasts[0].speed else 1.0)
        else:
            levels.append(contrasts[0].level)
    adjusted = iter(holm(np.array([level for level in levels if level is not None])))
    return [None if level is None else float(next(adjusted)) for level in levels]


def cautions(studies: Sequence[StudyResults]) -> Iterator[str]:
    """A sentence for each thing that makes several verdicts worth less than each alone."""
    answers = [
        deciding(results.verdict().contrasts[0], results.study) for results in studies if results.verdict().contrasts
    ]
    decided = sum(answer not in (Answer.UNDECIDED, Answer.EQUIVALENT) for answer in answers)
    if len(answers) > 1:
        yield (
            f"Each verdict alone errs with a chance of {ALPHA:.0%}: if nothing differed anywhere, about "
            f"{ALPHA * len(answers):.2g} of these {len(answers)} would still claim a difference ({decided} do). The "
            "last column is adjusted for all of them."
        )
    baselines = defaultdict(list)
    for results in studies:
        study = results.study
        for seed in study.baseline_seeds:
            baselines[repr((study.spec, study.baseline, seed))].append(results.name)
    for names in dict.fromkeys(tuple(names) for names in baselines.values() if len(names) > 1):
        yield f"{listed(list(names))} have the same baseline on the same seeds, so their errors go together."


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledNoise:
    """How far runs like a study's varied from seed to seed in other studies."""

    sd: float  # nats, of a run
    runs: int
    df: int
    studies: tuple[str, ...]

    def __str__(self) -> str:
        return f"s.d. {self.sd:.2g} nats over {self.runs} runs like its baseline in {listed(list(self.studies))}"


def pooled_noise(study: Study, others: Sequence[StudyResults]) -> PooledNoise | None:
    """The noise of the fresh runs of `others` with the study's model, data, tokens and batch; None without any.

    Each side of each study varies around a mean of its own. Studies named like this one are left out.
    """
    squares, runs, df, names = 0.0, 0, 0, dict[str, None]()
    for results in others:
        same_data = all(getattr(results.study.spec, key) == getattr(study.spec, key) for key in LIKE)
        if results.name == study.name or not same_data:
            continue
        for side in (BASELINE, *results.fresh.candidates):
            complete = results.fresh.complete_losses(side)
            batches = set(results.fresh.full(side)["batch_tokens"])
            if len(complete) > 1 and batches == {study.baseline.batch_tokens}:
                squares += float(complete.var(ddof=1)) * (len(complete) - 1)
                runs, df = runs + len(complete), df + len(complete) - 1
                names[results.name] = None
    return PooledNoise(sd=math.sqrt(squares / df), runs=runs, df=df, studies=tuple(names)) if df else None
