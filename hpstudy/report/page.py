"""Figures, tables and sentences on two pages: HTML that needs nothing but itself, and Markdown without figures."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpstudy import __version__
from hpstudy.analysis.frames import StudyFrames
from hpstudy.analysis.verdict import Verdict
from hpstudy.errors import MachineError
from hpstudy.report import curve_figures, search_figures, tables
from hpstudy.report.curves import best_first, cast
from hpstudy.report.scales import near_ends
from hpstudy.report.style import DARK, Figure
from hpstudy.report.tables import Table
from hpstudy.study import Study
from hpstudy.tracking.store import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report; `warnings` are sentences that the reader must not miss."""

    title: str
    text: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()  # on request
    commands: tuple[str, ...] = ()


def write_report(
    frames: StudyFrames,
    study: Study,
    verdict: Verdict,
    environment: Mapping[str, Any],
    directory: Path,
    *,
    importances: Mapping[str, float] | None = None,
) -> Path:
    """Writes `index.html` and `report.md`, each whole or not at all, and returns the path of the first.

    importances: each searched key's share, the largest first. Raises MachineError when the folder cannot be written.
    """
    sections = _sections(frames, study, verdict, environment, importances or {})
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"{directory}: cannot be made: {error.strerror}; free some space and report again"
        ) from error
    write_atomic(directory / "report.md", _markdown(study, verdict, sections))
    page = directory / "index.html"
    write_atomic(page, render(name=study.name, question=study.question, headline=verdict.sentence, sections=sections))
    return page


def _sections(
    frames: StudyFrames,
    study: Study,
    verdict: Verdict,
    environment: Mapping[str, Any],
    importances: Mapping[str, float],
) -> list[Section]:
    trials, shown = frames.trials, cast(frames, study, verdict)
    ranked = best_first(trials, study)
    winner = verdict.contrasts[0].candidate if verdict.contrasts else None
    best = ranked[ranked["run_id"] == winner] if winner else ranked
    lost = tables.lost_trials(trials, study)
    warnings = tuple(near_ends(study, {key: best.iloc[0][key] for key in study.space})) if len(best) else ()
    hyperparameters = tuple(search_figures.hyperparameter_panels(trials, study, winner)) if len(ranked) else ()
    together = [search_figures.importance_bars(importances)] if importances else []
    if len(study.space) > 1 and len(ranked):
        together.append(search_figures.parallel_coordinates(trials, study, winner))
    front = (search_figures.pareto_front(trials, study),) if len(study.objectives) > 1 else ()
    result = (
        curve_figures.loss_curves(frames.steps, shown),
        *((curve_figures.differences(verdict),) if winner else ()),
    )
    certain = tuple(tables.certainty(verdict)) + ((tables.speedups(frames, study, verdict),) if winner else ())
    commit = environment.get("git_commit")
    return [
        Section(
            title="Result",
            figures=tuple(result),
            tables=(tables.summary(frames, study, verdict),),
            text=(tables.departures(study),),
            warnings=tuple(
                f"{c.candidate}: {text}"
                for c in verdict.contrasts
                for text in (
                    *(f"{run} diverged and counts with the loss of a uniform guess" for run in c.diverged),
                    *(f"the verdict lacks {run}" for run in c.left_out),
                )
            ),
        ),
        Section(title="How sure", text=tuple(_certainty(verdict)), tables=tuple(certain)),
        Section(
            title="The hyperparameters",
            text=("Dashed: the baseline's value. Blue: the confirmed candidate. Crosses: failed or diverged.",),
            warnings=warnings,
            figures=(*hyperparameters, *together),
        ),
        Section(
            title="The search",
            figures=(search_figures.best_so_far(trials, study), *front),
            tables=(tables.best_trials(frames, study, verdict.noise), *([lost] if lost else [])),
            text=() if lost else ("No run failed or diverged.",),
        ),
        Section(title="The training", figures=tuple(curve_figures.training_curves(frames.steps, shown))),
        Section(
            title="Cost, machine, and how to do it again",
            tables=(tables.cost(trials), tables.environment_table(environment)),
            commands=(
                *([f"git checkout {commit}"] if commit else []),
                f"hpstudy run {study.name}",
                f"hpstudy report {study.name}",
            ),
            folded=(tables.resolved_table(study),),
        ),
    ]  # fmt: skip


def _certainty(verdict: Verdict) -> list[str]:
    noise = verdict.noise
    if noise is None:
        return ["The noise between seeds is not measured yet: the baseline needs at least two runs on fresh seeds."]
    return [
        f"The baseline's val loss varies from seed to seed with a standard deviation of {noise.sd:.4f} nats ({noise.n} "
        f"seeds). So many seeds per arm detect a difference of {noise.detectable:.4f} nats or more with 80% power. "
        f"A difference below the margin of {verdict.margin:g} nats does not matter here: the study file says so."
    ]


def render(*, name: str, question: str, headline: str, sections: Sequence[Section]) -> str:
    """The page as HTML that needs nothing but itself."""
    environment = Environment(
        loader=PackageLoader("hpstudy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly = get_plotlyjs()
    script, _, _ = environment.loader.get_source(environment, "page.js")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        name=name,
        question=question,
        headline=headline,
        sections=sections,
        plotly=Markup(plotly),
        script=Markup(script),
        policy=" ".join(_source_hash(text) for text in (plotly, script)),
        dark=DARK,
        data=_data,
        version=__version__,
    )


def _data(figure: Figure) -> Markup:
    """A figure as JSON that cannot end the element it stands in: "<" occurs in JSON within strings alone."""
    return Markup(str(figure.plot.to_json()).replace("<", "\\u003c"))


def _source_hash(script: str) -> str:
    """The one script that this is, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _markdown(study: Study, verdict: Verdict, sections: list[Section]) -> str:
    parts = [f"# {_md(study.name)}", f"> {_md(study.question)}", f"**{_md(verdict.sentence)}**"]
    for section in sections:
        parts.append(f"## {_md(section.title)}")
        parts += [f"**Note:** {_md(warning)}" for warning in section.warnings]
        parts += [_md(text) for text in section.text]
        for table in (*section.tables, *section.folded):
            parts += [f"### {_md(table.title)}", _markdown_table(table), *([_md(table.note)] if table.note else [])]
        if section.commands:
            parts.append("\n".join(f"    {command}" for command in section.commands))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [map(_md, table.header), rule, *(map(_md, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table too."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
