"""The trials that published rules propose: which rule, at which number, with which values.

They follow from the study file alone, and not from how many trials the search has: extending it changes none.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

from hpstudy.hparams import SEARCHABLE, HParams, raw_key
from hpstudy.records import trial_run_id
from hpstudy.search.rules import PUBLISHED, PublishedRule, Sizes
from hpstudy.study import Choices, Dimension, Study, Value
from hpstudy.study.schema import COMBINED, RULE_KEYS, RuleName

EVERY = 4  # trials, of which "auto" lets one be a rule's


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTrial:
    """A trial that a rule proposes."""

    rule: RuleName
    values: dict[str, Value]  # keyed as in the study's space
    moved: dict[str, float]  # key -> what the rule predicts, if the space has no such value
    used: tuple[PublishedRule, ...]  # the rules that speak about a searched key; several if they are combined


def rule_trials(study: Study) -> dict[int, RuleTrial]:
    """The rules' trials by number.

    Each has the baseline's values, and its rule's of the searched keys that this speaks about. A value that the range
    lacks moves to its end, or to the nearest choice on a log scale. A rule that would repeat an earlier trial is left
    out.

    With "auto" all rules are proposed, first the combined one, which is the best guess that the literature has for all
    keys together. They are trials 1, 5, 9 and so on (0, 4, 8 if the space lacks the baseline, and later after points
    that the file states), so that one trial in four is a rule's however many there are, and the sampler learns of the
    best guess from the start. Rules that the file lists follow the baseline and the file's own points at once.
    """
    if study.is_grid or not study.budget.rules or study.metrics != ("val/loss",):
        return {}
    auto = study.budget.rules == "auto"
    names: tuple[RuleName, ...] = tuple(RULE_KEYS) if study.budget.rules == "auto" else study.budget.rules
    baseline = study.baseline_proposal()
    proposed = [] if baseline is None else [baseline]
    proposed += [point for point in study.budget.first if point not in proposed]
    first, found = len(proposed), dict[int, RuleTrial]()
    for name in names:
        trial = _rule_trial(study, name)
        if trial.used and trial.values not in proposed:
            proposed.append(trial.values)
            found[first + len(found) * (EVERY if auto else 1)] = trial
    return found


def rule_runs(study: Study) -> dict[str, RuleName]:
    """The rule that proposed a run of the search, by the run's id."""
    return {trial_run_id("search", number): trial.rule for number, trial in rule_trials(study).items()}


def sizes(study: Study) -> Sizes:
    """The numbers of a study that rules take."""
    model, context = study.spec.model, study.spec.context
    whole = model.num_params(study.vocab_size, context)
    return Sizes(weights=model.num_weights, all_weights=whole, tokens=study.spec.tokens)


def _rule_trial(study: Study, name: RuleName) -> RuleTrial:
    """The trial of a rule. Of combined rules each sees what those before it have set; a single one keeps its name."""
    values, moved, used = _start(study), dict[str, float](), list[PublishedRule]()
    for part in COMBINED if name == "combined" else (name,):
        rule = PUBLISHED[part]
        hparams = study.trial_hparams(values, study.spec.tokens)
        own = _in_space(study, hparams, rule.predict(sizes(study), hparams))
        used += [rule] if own else []
        for key, value in own.items():
            values[key] = _nearest(key, study.space[key], value)
            if values[key] != value:
                moved[key] = value
    return RuleTrial(rule=used[0].name if len(used) == 1 else name, values=values, moved=moved, used=tuple(used))


def _in_space(study: Study, hparams: HParams, predicted: dict[str, float]) -> dict[str, float]:
    """The predictions for searched keys, and as coordinates if these are searched in their place."""
    found = dict[str, float]()
    for raw, prediction in predicted.items():
        for key in study.space:
            if raw_key(key) == raw:
                changed: dict[str, Any] = {raw: prediction}
                found[key] = prediction if key == raw else float(study.value(replace(hparams, **changed), key))
    return found


def _start(study: Study) -> dict[str, Value]:
    """The point of the space nearest to the baseline."""
    baseline = study.baseline
    return {key: _nearest(key, dimension, study.value(baseline, key)) for key, dimension in study.space.items()}


def _nearest(key: str, dimension: Dimension, value: Value) -> Value:
    """The value of the dimension nearest to `value`: of choices on a log scale, of betas on that of 1 - value."""
    if not isinstance(dimension, Choices):
        return dimension.nearest(value)
    if dimension.contains(value) or isinstance(value, str):
        return value if dimension.contains(value) else dimension.values[0]
    from_one = SEARCHABLE[key].scale == "log1m"

    def size(number: Value) -> float:
        return 1 - float(number) if from_one else float(number)

    wanted = min(size(value), sys.float_info.max)  # a timescale without weight decay is infinite
    if min(wanted, *map(size, dimension.values)) > 0:
        return min(dimension.values, key=lambda choice: abs(math.log(size(choice) / wanted)))
    return min(dimension.values, key=lambda choice: abs(size(choice) - wanted))
