"""The report as parts: figures, tables and sentences, in the order of the HTML and Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpstudy.analysis.answers import Verdict
from hpstudy.analysis.departures import departures_sentence
from hpstudy.analysis.ranges import at_ends
from hpstudy.analysis.results import StudyResults
from hpstudy.report import curve_figures, search_figures, tables
from hpstudy.report.curves import shown_runs
from hpstudy.report.style import Figure
from hpstudy.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    text: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # sentences that the reader must not miss
    legend: str = ""  # of the figures
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()  # shown on request
    commands: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()  # (text, relative address)


def sections(results: StudyResults, importances: Mapping[str, float]) -> list[Section]:
    """The parts of a study's report."""
    study, verdict, trials = results.study, results.verdict(), results.trials
    shown, ranked = shown_runs(results), results.ranked()
    winner = verdict.contrasts[0].candidate if verdict.contrasts else None
    lost = tables.lost_trials(results)
    warnings = tuple(map(str, at_ends(study, results.tuned.hparams))) if results.tuned else ()
    hyperparameters = tuple(search_figures.hyperparameter_panels(results, winner)) if len(ranked) else ()
    together = [search_figures.importance_bars(importances)] if importances else []
    if len(study.space) > 1 and len(ranked):
        together.append(search_figures.parallel_coordinates(results, winner))
    front = (search_figures.pareto_front(results),) if len(study.metrics) > 1 else ()
    result = (
        curve_figures.loss_curves(results.steps, shown),
        *((curve_figures.differences(verdict, study),) if winner else ()),
    )
    certain = tuple(tables.certainty(verdict)) + ((tables.speedups(results),) if winner else ())
    commit = results.commit
    return [
        Section(
            title="Result",
            figures=tuple(result),
            tables=(tables.summary(results),),
            text=(departures_sentence(study),),
            warnings=tuple(f"resumed in another environment: {change}" for change in results.accepted_changes)
            + results.frames.problems
            + tuple(
                f"{c.candidate}: {text}"
                for c in verdict.contrasts
                for text in (
                    *(f"{run} diverged and counts with the loss of a uniform guess" for run in c.diverged),
                    *(f"the verdict lacks {run}" for run in c.left_out),
                )
            ),
        ),
        Section(title="How sure", text=(_certainty(verdict),), tables=tuple(certain)),
        Section(
            title="The hyperparameters",
            legend="Dashed: the baseline's value. Blue: the confirmed candidate. Crosses: failed or diverged.",
            warnings=warnings,
            figures=(*hyperparameters, *together),
        ),
        Section(
            title="The search",
            figures=(search_figures.best_so_far(results), *front),
            tables=(tables.best_trials(results), *([lost] if lost else [])),
            text=() if lost else ("No run failed or diverged.",),
        ),
        Section(title="The training", figures=tuple(curve_figures.training_curves(results.steps, shown))),
        Section(
            title="Cost, machine, and how to do it again",
            tables=(tables.cost(trials), tables.environment_table(results.environment)),
            commands=(
                *([f"git checkout {commit}"] if commit else []),
                tables.command(results),
                f"hpstudy report {study.name}",
            ),
            folded=(tables.resolved_table(study),),
        ),
    ]


def _certainty(verdict: Verdict) -> str:
    noise = verdict.noise
    if noise is None:
        return "The noise between seeds is not measured yet: the baseline needs at least two runs on fresh seeds."
    measured = f"measured on {noise.pairs} pairs" if noise.pairs else "if the sides are as noisy and uncorrelated"
    seeds = noise.pairs or noise.n
    return (
        f"The baseline's val loss varies from seed to seed with a standard deviation of {noise.sd:.4f} nats ({noise.n} "
        f"seeds), the difference of two runs with {noise.difference_sd:.4f} ({measured}). {seeds} seeds "
        f"per arm detect a difference of {noise.detectable:.4f} nats or more with 80% power. "
        + (f"A difference below the margin of {verdict.margin:.2g} nats counts as none." if verdict.margin else "")
    )
