"""Reports in Markdown: one study's whole report, and the results of several studies in short."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence

from hpstudy.analysis.answers import by_speed, deciding
from hpstudy.analysis.departures import departures_sentence
from hpstudy.analysis.drift import drift
from hpstudy.analysis.measured import ONE_SEED_DIGITS
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import rule_records
from hpstudy.analysis.together import adjusted_levels, cautions
from hpstudy.files import RUNS, command
from hpstudy.report import tables
from hpstudy.report.first_screen import FirstScreen
from hpstudy.report.sections import Opening, Section
from hpstudy.report.style import Figure
from hpstudy.report.tables import Table

MOST_ROWS = 25  # of a sortable table


def report_markdown(
    results: StudyResults, first: FirstScreen, sections: Sequence[Section], images: Mapping[str, str]
) -> str:
    """A study's report. `images` are the addresses of the figures that are written as files, by title."""
    study, verdict, short = results.study, results.verdict(), first.short
    parts = [
        f"# {_md(study.name)}",
        f"> {_md(study.question)}",
        f"**{_md(short.badge)}.** {_md(short.sentence)}",
        _md(" · ".join(first.evidence)),
        *_shown(images, [first.tabs[0][1], *([first.differences] if first.differences else [])]),
    ]
    if (values := tables.changes(results)) is not None:
        parts += [f"### {_md(first.heading)}", _markdown_table(values)]
    parts += [_md(first.departures), f"**{_md(verdict.sentence)}**", f"Next: {_md(first.advice)}: `{first.command}`"]
    for section in sections:
        parts += _section(section, images, said=verdict.headline)
    return "\n\n".join(parts) + "\n"


def opened_markdown(
    name: str, question: str, opening: Opening, sections: Sequence[Section], images: Mapping[str, str]
) -> str:
    """A page that begins with an opening, as Markdown; `images` as in `report_markdown`."""
    parts = [
        f"# {_md(name)}",
        f"> {_md(question)}",
        f"**{_md(opening.short.badge)}.** {_md(opening.short.sentence)}",
        *map(_md, opening.text),
        f"Next: {_md(opening.advice)}: `{opening.command}`",
    ]
    for section in sections:
        parts += _section(section, images)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, images: Mapping[str, str], *, said: str = "") -> list[str]:
    """A part of the report without the sentence `said`; empty if it has nothing but figures that are no files."""
    parts = [f"**Note:** {_md(warning)}" for warning in section.warnings]
    parts += [_md(text) for text in section.text if text != said]
    parts += _shown(images, section.figures)
    for table in (*section.tables, *section.folded):
        parts += [f"### {_md(table.title)}"] if table.title else []
        parts += [_markdown_table(table), *([_md(table.note)] if table.note else [])]
        if len(table.rows) > MOST_ROWS and table.sortable:
            parts.append(f"The first {MOST_ROWS} of {len(table.rows)} rows; trials.csv has all.")
    if section.commands:
        parts.append("\n".join(f"    {command}" for command in section.commands))
    return [f"## {_md(section.title)}", *parts] if parts else []


def _shown(images: Mapping[str, str], figures: Sequence[Figure]) -> list[str]:
    """The figures that are written as files."""
    return [f"![{_md(figure.title)}]({images[figure.title]})" for figure in figures if figure.title in images]


def _markdown_table(table: Table) -> str:
    rule = ["---"] * len(table.header) if table.words else ["---", *["---:"] * (len(table.header) - 1)]
    rows = table.rows[:MOST_ROWS] if table.sortable else table.rows
    named = [[_linked(row[0], table.links), *map(_md, row[1:])] for row in rows]
    lines = [map(_md, table.header), rule, *named]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _linked(name: str, links: Mapping[str, str]) -> str:
    return f"[{_md(name)}]({links[name]})" if name in links else _md(name)


def _md(text: str) -> str:
    """Text that Markdown shows unchanged, on one line, in tables too."""
    line = re.sub(r"([\\`*_~#\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", line)


def results_markdown(studies: Sequence[StudyResults]) -> str:
    """The answers of several studies: a table of all, then each with its numbers, its machine and its command."""
    command = shlex.join(["hpstudy", "results", *(results.name for results in studies)])
    parts = [
        "# Results",
        "What these studies found, by the rule that each file fixed before its first run. Losses are in nats on "
        f"validation text, intervals of 95%. Written by `{command}` from the runs themselves.",
        _markdown_table(_overview(studies)),
        *map(_md, cautions(studies)),
        *_rules(studies),
        *(part for results in studies for part in _result(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _rules(studies: Sequence[StudyResults]) -> list[str]:
    """The record of published rules over the studies' searches."""
    rows = tuple(
        (
            record.rule,
            str(record.studies),
            f"{record.rank:g} of {record.trials:g}",
            "-" if record.regret is None else f"{record.regret:.{ONE_SEED_DIGITS}f}",
            str(record.lost),
        )
        for record in rule_records(studies)
    )
    if not rows:
        return []
    header = ("rule", "studies", "median rank among the trials", "median above the best (nats)", "not complete")
    said = "What published rules proposed, against all trials of their searches, one seed each:"
    return [said, _markdown_table(Table(title="Published rules", header=header, rows=rows))]


def _overview(studies: Sequence[StudyResults]) -> Table:
    rows = []
    for results, p in zip(studies, adjusted_levels(studies), strict=True):
        study, verdict = results.study, results.verdict()
        first = verdict.contrasts[0] if verdict.contrasts else None
        answer = deciding(first, study).value if first else "-"
        difference = "-"
        if first:
            difference = tables.relative(first.speed) if by_speed(study) else tables.interval(first)
        rows.append(
            (study.name, study.question, verdict.reply or "-", answer, difference, "-" if p is None else f"{p:.2g}")
        )
    difference = "val loss less the baseline's, or speed over it [95%]"
    header = ("study", "question", "reply", "the winner is", difference, "p over all these studies")
    return Table(title="Answers", header=header, rows=tuple(rows), words=True)


def _result(results: StudyResults) -> list[str]:
    study, verdict, environment = results.study, results.verdict(), results.environment
    commit = results.commit or "?"
    again = command("run", results.name, RUNS, *tables.more_trials(results))  # for readers elsewhere
    summary = tables.sides(results)
    begun = results.trials["started"].min()
    versions = {"torch": environment.get("torch"), **environment.get("packages", {})}
    software = ", ".join(f"{name} {versions.get(name) or '?'}" for name in ("hpstudy", "torch", "optuna"))
    device, cores, precision = (environment.get(key) or "?" for key in ("device_name", "cores", "precision"))
    machine = ", ".join(filter(None, (device, f"{cores} cores", precision, study.spec.ranks_named)))
    runs = results.trials["outcome"].value_counts()
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in runs.items() if count)
    hours = results.trials["train_seconds"].sum() / 3600
    noise = [f"Noise: {verdict.noise}."] if verdict.noise else []
    noise += [drifted.sentence] if (drifted := drift(results)) else []
    return [
        f"## {_md(study.name)}",
        f"> {_md(study.question)}",
        f"**{_md(verdict.sentence)}**",
        *([_markdown_table(values)] if (values := tables.changes(results)) else []),
        _markdown_table(summary),
        _md(" ".join([summary.note, *noise, departures_sentence(study)])),
        f"`{again}`, begun {begun:%Y-%m-%d}, commit `{commit}`, {_md(software)}; {_md(machine)}; "
        f"{len(results.trials)} runs ({outcomes}), {hours:.2f} hours of training.",
    ]
