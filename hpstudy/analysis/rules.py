"""Results of the trials that published rules proposed: their rank in the search and their distance from its best.

All of it is of one seed a trial, that of the search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from hpstudy.analysis.measured import ONE_SEED_DIGITS
from hpstudy.analysis.numbers import listed, plain, short
from hpstudy.analysis.results import StudyResults
from hpstudy.records import trial_run_id
from hpstudy.study import Choices, Study

if TYPE_CHECKING:
    from hpstudy.search.rule_trials import RuleTrial  # Optuna takes half a second to import
    from hpstudy.search.rules import PublishedRule, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """How a rule's trial ended."""

    rule: str
    run_id: str
    val_loss: float | None  # None unless the trial is complete
    regret: float | None  # nats above the best trial of the search, likewise
    rank: int  # among `trials`, 1 the best; trials that are not complete share the last
    trials: int  # of the search that ended
    sources: tuple[str, ...]
    moved: tuple[str, ...]  # a sentence for each value that the space lacks
    outside: tuple[str, ...]  # a sentence for each part that was fitted to other sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleRecord:
    """A rule over several studies."""

    rule: str
    studies: int
    rank: float  # median
    trials: float  # median, of which that is the rank
    regret: float | None  # median in nats, over complete trials; None without any
    lost: int  # trials that are not complete


def rules_of(study: Study) -> dict[str, RuleTrial]:
    """The trials that rules propose, by their run's id."""
    if not study.budget.rules:
        return {}
    from hpstudy.search.rule_trials import rule_trials

    return {trial_run_id("search", number): trial for number, trial in rule_trials(study).items()}


def rule_names(study: Study) -> dict[str, str]:
    """The rule that proposed a run of the search, by the run's id."""
    return {run: trial.rule for run, trial in rules_of(study).items()}


def rule_results(results: StudyResults) -> list[RuleResult]:
    """The rules' trials that ended, the best first."""
    study = results.study
    if not (proposed := rules_of(study)):
        return []
    trials, ranked = results.trials, results.ranked()
    ended = [str(run) for run in trials.loc[(trials["phase"] == "search") & trials["outcome"].notna(), "run_id"]]
    losses = dict(zip(ranked["run_id"].astype("str"), map(float, ranked["val_loss"]), strict=True))
    best = min(losses.values(), default=0.0)
    ranks = {run: rank for rank, run in enumerate(losses, start=1)}
    found = [
        RuleResult(
            rule=trial.rule,
            run_id=run,
            val_loss=losses.get(run),
            regret=losses[run] - best if run in losses else None,
            rank=ranks.get(run, len(ended)),
            trials=len(ended),
            sources=tuple(dict.fromkeys(rule.source for rule in trial.used)),
            moved=tuple(moved(study, trial)),
            outside=tuple(outside(study, trial)),
        )
        for run, trial in proposed.items()
        if run in ended
    ]
    return sorted(found, key=lambda result: result.rank)


def closest(results: StudyResults) -> str:
    """Which rule came closest to the best of the search and by how much; empty before a rule's trial is complete.

    `closest_notes` has more on it.
    """
    found = [each for each in rule_results(results) if each.regret is not None]
    if not found:
        return ""
    first = found[0]
    assert first.regret is not None
    if first.rank == 1:
        return f"{first.rule} proposed the best of {first.trials} trials."
    noise = results.noise
    near = ", no more than two seeds of one setting differ by" if noise and first.regret <= noise.one_seed else ""
    among = f"Of {len(found)} rules trained to the end {first.rule} came closest: it" if len(found) > 1 else first.rule
    lost = f"lost {first.regret:.{ONE_SEED_DIGITS}f} nats to the best trial"
    return f"{among} {lost}{near}, as number {first.rank} of {first.trials}."


def closest_notes(results: StudyResults) -> tuple[str, ...]:
    """Which sizes the rule of `closest` was fitted to, if this study has others, and what was moved into the range."""
    found = [each for each in rule_results(results) if each.regret is not None]
    return (*found[0].outside, *found[0].moved) if found else ()


def rule_records(studies: Sequence[StudyResults]) -> list[RuleRecord]:
    """Each rule over these studies, the one of the lowest median rank in proportion first."""
    by_rule = defaultdict[str, list[RuleResult]](list)
    for results in studies:
        for each in rule_results(results):
            by_rule[each.rule].append(each)
    records = [
        RuleRecord(
            rule=rule,
            studies=len(found),
            rank=median(each.rank for each in found),
            trials=median(each.trials for each in found),
            regret=median(regrets) if (regrets := [e.regret for e in found if e.regret is not None]) else None,
            lost=sum(each.regret is None for each in found),
        )
        for rule, found in by_rule.items()
    ]
    return sorted(records, key=lambda record: (record.rank / record.trials, record.rule))


def outside(study: Study, trial: RuleTrial) -> Iterator[str]:
    """A sentence for each part of a trial's rule that was fitted to other sizes than this study's."""
    from hpstudy.search.rule_trials import sizes

    ours = sizes(study)
    for rule in trial.used:
        if any(rule.outside(ours)):
            yield f"{rule.name} was fitted to {_fitted(rule)}; here are {_used(rule, ours)}."


def moved(study: Study, trial: RuleTrial) -> Iterator[str]:
    """A sentence for each value of a trial's rule that the space lacks."""
    for key, wanted in trial.moved.items():
        value = trial.values[key]
        where = "the nearest choice" if isinstance(study.space[key], Choices) else "the end of the range"
        yield f"{key} is {plain(value)}, {where}: the rule says {plain(wanted)}."


def _fitted(rule: PublishedRule) -> str:
    """`60M to 1B weights and 2B to 100B tokens`."""
    ranges = ((rule.fitted_weights, "weights"), (rule.fitted_tokens, "tokens"))
    return " and ".join(f"{short(fitted[0])} to {short(fitted[1])} {what}" for fitted, what in ranges if fitted)


def _used(rule: PublishedRule, sizes: Sizes) -> str:
    """`100k weights and 300k tokens`, of those that the rule states a range of."""
    tokens = f"{short(sizes.tokens)} tokens" if rule.fitted_tokens and sizes.tokens else ""
    weights = f"{short(rule.weights(sizes))} weights" if rule.fitted_weights else ""
    return listed([part for part in (weights, tokens) if part])
