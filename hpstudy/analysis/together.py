"""What several studies claim together: their p values adjusted over all of them, and what they have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from hpstudy.analysis.answers import by_speed, deciding
from hpstudy.analysis.numbers import listed
from hpstudy.analysis.results import StudyResults
from hpstudy.statistics.difference import ALPHA, holm
from hpstudy.statistics.race import Answer


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
    decided = sum(answer is not Answer.UNDECIDED for answer in answers)
    if len(answers) > 1:
        yield (
            f"Each verdict alone errs with a chance of {ALPHA:.0%}: if nothing differed anywhere, about "
            f"{ALPHA * len(answers):.2g} of these {len(answers)} would still claim something ({decided} do). The last "
            "column is adjusted for all of them."
        )
    baselines = defaultdict(list)
    for results in studies:
        study = results.study
        for seed in study.baseline_seeds:
            baselines[repr((study.spec, study.baseline, seed))].append(results.name)
    for names in dict.fromkeys(tuple(names) for names in baselines.values() if len(names) > 1):
        yield f"{listed(list(names))} have the same baseline on the same seeds, so their errors go together."
