"""The report below its first screen as parts: figures, tables and sentences, for the HTML and Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpstudy.analysis.answers import Verdict
from hpstudy.analysis.drift import apart, drift
from hpstudy.analysis.foreseen import Foreseen, foreseen
from hpstudy.analysis.in_short import InShort, opponent
from hpstudy.analysis.numbers import short
from hpstudy.analysis.ranges import at_ends
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import closest, closest_notes
from hpstudy.files import command
from hpstudy.report import curve_figures, search_figures, tables
from hpstudy.report.curves import ShownRuns
from hpstudy.report.parallel import parallel_coordinates
from hpstudy.report.style import Figure
from hpstudy.report.tables import Table

if TYPE_CHECKING:
    from hpstudy.search.importance import Importance  # Optuna takes half a second to import


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a page without a first screen begins with."""

    short: InShort
    text: tuple[str, ...]
    advice: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    id: str = ""  # in the page
    text: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()  # (text, address)
    warnings: tuple[str, ...] = ()  # sentences that the reader must not miss
    legend: str = ""  # of the figures
    figures: tuple[Figure, ...] = ()
    parallel: str = ""  # parallel coordinates, as SVG
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()  # shown on request
    commands: tuple[str, ...] = ()


def sections(results: StudyResults, importances: Mapping[str, Importance], shown: ShownRuns) -> list[Section]:
    """The parts of a study's report after its first screen."""
    study, verdict, trials, found = results.study, results.verdict(), results.trials, results.tuned
    winner, searched = found.run_id if found else None, tables.trials_table(results)
    ends = tuple(map(str, at_ends(study, found.hparams))) if found else ()
    certain = [tables.sides(results), *tables.certainty(verdict), tables.speedups(results)]
    reached = (tables.statistics(verdict),) if verdict.contrasts else ()
    panels = tuple(search_figures.hyperparameter_panels(results, winner))
    together = (search_figures.importance_bars(importances),) if len(importances) > 1 else ()
    commit, rules, stopping = results.commit, tables.rules_table(results), foreseen(results)
    drifted = drift(results)
    parts = [
        Section(
            title="How sure",
            id="certainty",
            warnings=tuple(_warnings(results)),
            text=(verdict.headline, _certainty(verdict), *([drifted.sentence] if drifted else [])),
            tables=tuple(table for table in certain if table),
            folded=reached,
        ),
        Section(
            title="Hyperparameters",
            id="hyperparameters",
            legend="Dashed: the baseline's value. Blue: the best values. Crosses: not complete, hollow: pruned.",
            warnings=ends,
            text=(results.region.sentence(opponent(study)),) if results.region else (),
            figures=(*panels, *together),
        ),
        Section(
            title="Search",
            id="search",
            text=(" ".join([said, *closest_notes(results)]),) if (said := closest(results)) else (),
            figures=(search_figures.best_so_far(results),),
            parallel=parallel_coordinates(results, winner) if study.space and searched.rows else "",
            tables=(searched, *([rules] if rules else [])),
        ),
        *([_foresight(stopping)] if stopping else []),
        Section(title="Training", id="training", figures=tuple(curve_figures.training_curves(results, shown))),
        Section(
            title="Reproduce",
            id="reproduce",
            tables=(tables.cost(trials),),
            commands=(
                *([f"git checkout {commit}"] if commit else []),
                tables.command(results),
                command("report", study.name, results.frames.runs),
            ),
            folded=(tables.environment_table(results.environment), tables.resolved_table(study)),
        ),
    ]
    return [part for part in parts if study.space or part.id not in ("hyperparameters", "search")]


def _foresight(found: Foreseen) -> Section:
    """Whether the forecasts that stopped trials came true, and what they saved."""
    saved = found.savings
    lost = [each.run_id for each in found.audited if each.is_best]
    text = [
        f"Foresight stopped {saved.stopped} of {saved.ended} trials and saved {short(saved.tokens)} of "
        f"{short(saved.planned)} tokens ({saved.share:.0%}).",
    ]
    if found.audited:
        held = sum(each.held for each in found.audited)
        text.append(
            f"The interval held the final loss of {held} of {len(found.audited)} audited trials. "
            + (f"The best trial, {lost[0]}, is one of them." if lost else "None of them is the best of the search.")
        )
    return Section(
        title="Foresight",
        id="foresight",
        warnings=tuple(f"{run} is the best of the search, and would have been stopped" for run in lost),
        text=tuple(text),
        figures=(search_figures.forecast_errors(found),) if found.errors else (),
        tables=tuple(table for table in (tables.forecast_errors(found), tables.audit(found)) if table),
    )


def _warnings(results: StudyResults) -> list[str]:
    contrasts, drifted = results.verdict().contrasts, drift(results)
    return [
        *(f"resumed in another environment: {change}" for change in results.accepted_changes),
        *(f"trained on {kind} too: {'; '.join(what)}" for kind, what in results.other_kinds.items()),
        *(
            f"{run} trained on another kind of machine than the baseline's run of its seed"
            for run in results.mixed_pairs
        ),
        *results.frames.problems,
        *(f"{run} diverged and counts with the loss of a uniform guess" for c in contrasts for run in c.diverged),
        *(f"{c.candidate}: the verdict lacks {run}" for c in contrasts for run in c.left_out),
        *([drifted.warning] if drifted and drifted.warning else []),
        *(
            f"{name} trained on fresh seeds after the baseline had: the ratio of their speeds holds what the machine's "
            "speed changed by in between; a new study with as many trials trains both in turns"
            for name in apart(results)
        ),
    ]


def _certainty(verdict: Verdict) -> str:
    noise = verdict.noise
    if noise is None:
        return "The noise between seeds is not measured yet: the baseline needs at least two runs on fresh seeds."
    measured = f"measured on {noise.pairs} pairs" if noise.pairs else "if the sides are as noisy and uncorrelated"
    seeds = noise.pairs or noise.n
    return (
        f"The baseline's val loss varies from seed to seed with a standard deviation of {noise.sd:.2g} nats ({noise.n} "
        f"seeds), the difference of two runs with {noise.difference_sd:.2g} ({measured}). {seeds} seeds "
        f"per arm detect a difference of {noise.detectable:.2g} nats or more with 80% power. "
        + (f"A difference below the margin of {verdict.margin:.2g} nats counts as none." if verdict.margin else "")
    )
