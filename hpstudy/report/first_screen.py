"""The report's first screen: the answer, its evidence, the curves, and what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from hpstudy.analysis.answers import by_speed
from hpstudy.analysis.departures import departures_sentence
from hpstudy.analysis.in_short import InShort, found_name, in_short, opponent, role_name
from hpstudy.analysis.numbers import duration, p_text, short
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.state import state
from hpstudy.report import curve_figures, search_figures, tables
from hpstudy.report.curves import ShownRuns, evaluated
from hpstudy.report.endings import not_complete
from hpstudy.report.strips import strip
from hpstudy.report.style import Figure
from hpstudy.report.tables import interval, relative
from hpstudy.tracking.store import delivery
from hpstudy.tracking.wandb_sink import group_page

HEADINGS = {
    "tuned": "What to change",
    "best found": "The best values found",
    "best so far": "The best so far, one seed",
}
MARKS = re.compile(r"\((R|TM)\)| Processor")  # in the names of devices
X_AXES: tuple[curve_figures.XAxis, ...] = ("tokens", "steps", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One searched key: the baseline's value, the found one, and all trials along its range."""

    key: str
    baseline: str
    tuned: str
    effect: str
    strip: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstScreen:
    """What a reader sees first."""

    short: InShort
    evidence: tuple[str, ...]  # the first is the measured difference, if there is one
    tabs: tuple[tuple[str, Figure], ...]  # of one figure, each with its name
    heading: str  # of the changes
    columns: tuple[str, str]  # what the baseline and the found values are called
    changes: tuple[ChangeRow, ...]
    toml: str  # the found values as [hparams]
    departures: str  # how the baseline is not GPT-3
    differences: Figure | None
    caveats: str  # what a reader must know besides the answer
    links: tuple[tuple[str, str], ...]  # (text, address)
    advice: str
    command: str


def first_screen(results: StudyResults, shown: ShownRuns) -> FirstScreen:
    """The first screen of a study in any state."""
    study, verdict, found, now = results.study, results.verdict(), results.tuned, state(results)
    decided, name = bool(verdict.contrasts), found_name(results)
    caveats = verdict.sentence.removeprefix(verdict.headline).strip() if decided else ""
    return FirstScreen(
        short=in_short(results, now),
        evidence=tuple(_evidence(results)),
        tabs=tuple(_tabs(results, shown)),
        heading=HEADINGS[name],
        columns=(opponent(study), name),
        changes=tuple(_changes(results)),
        toml=found.as_toml(study) if found else "",
        departures=departures_sentence(study),
        differences=curve_figures.differences(results, shown) if decided else None,
        caveats=caveats,
        links=tuple(_links(results)),
        advice=now.advice,
        command=now.command,
    )


def _tabs(results: StudyResults, shown: ShownRuns) -> Iterator[tuple[str, Figure]]:
    study, runs = results.study, evaluated(results, shown)
    if len(study.metrics) > 1:
        yield "front", search_figures.pareto_front(results, curve_figures.role_names(results, shown))
    if by_speed(study):
        yield "speed", curve_figures.speed_curve(results, shown)
    for axis in X_AXES:
        yield axis, curve_figures.loss_curves(results, shown, runs, axis)
    if results.verdict().contrasts:
        yield "difference", curve_figures.difference_curve(results, shown, runs)


def _evidence(results: StudyResults) -> Iterator[str]:
    """The measured difference, seeds and p; then runs, tokens, compute, device, date and commit."""
    study, verdict, trials, environment = results.study, results.verdict(), results.trials, results.environment
    ended = trials[trials["outcome"].notna()]
    if verdict.contrasts:
        first = verdict.contrasts[0]
        timed = by_speed(study) and first.speed
        measured = relative(first.speed) if timed else interval(first)
        yield measured.replace(" [", " speed [95% " if timed else " nats [95% ")
        if first.speed and not timed:
            yield relative(first.speed).replace(" [", " speed [95% ")
        yield f"{first.n} fresh seed {'pairs' if first.design == 'paired' else 'runs a side'}"
        p = first.speed.p if timed and first.speed else first.level
        yield p_text(p)
        yield from (f"over {role_name(added.opponent)} {interval(added)}" for added in verdict.additions)
    yield f"{len(ended):,} run{'s' if len(ended) != 1 else ''}"
    if lost := len(not_complete(results)):
        yield f"{lost} of {int((trials['phase'] == 'search').sum())} trials not complete"
    yield f"{short(float(ended['tokens'].sum()))} tokens"
    yield f"{duration(float(ended['train_seconds'].sum()))} of training"
    device = [environment.get("device_name"), environment.get("precision"), results.study.spec.ranks_named]
    if any(device):
        yield MARKS.sub("", ", ".join(str(part) for part in device if part))
    if len(trials):
        yield f"{trials['started'].min():%-d %b %Y}"
    if results.commit:
        yield f"commit {results.commit[:7]}"


def _changes(results: StudyResults) -> Iterator[ChangeRow]:
    if (found := tables.changes(results)) is None or results.tuned is None:
        return
    for key, baseline, tuned, effect in found.rows:
        drawn = strip(results, key, results.tuned.run_id)
        yield ChangeRow(key=key, baseline=baseline, tuned=tuned, effect=effect, strip=drawn)


def _links(results: StudyResults) -> Iterator[tuple[str, str]]:
    assert results.store is not None
    group = group_page(results.store.root, results.name)
    if group.startswith("https://"):
        yield "W&B group", group
        run_id = results.tuned.run_id if results.tuned else results.study.baseline_run_id
        if str(page := delivery(results.store.root / run_id).get("url")).startswith("https://"):
            yield f"{run_id} on W&B", str(page)
    yield "trials.csv", "trials.csv"
    yield "report.md", "report.md"
