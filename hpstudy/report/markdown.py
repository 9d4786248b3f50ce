"""Reports in Markdown: one study's whole, and the results of several in short."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Sequence

from hpstudy.analysis.answers import Verdict
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.wording import deciding
from hpstudy.report import tables
from hpstudy.report.sections import Section
from hpstudy.report.tables import Table
from hpstudy.study import Study


def report_markdown(study: Study, verdict: Verdict, sections: Sequence[Section]) -> str:
    """A study's report without its figures."""
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


def results_markdown(studies: Sequence[StudyResults]) -> str:
    """The answers of several studies: a table of all, then each with its numbers, its machine and how to repeat it."""
    command = shlex.join(["hpstudy", "results", *(results.study.name for results in studies)])
    parts = [
        "# Results",
        "What these studies found, by the rule that each file fixed before its first run. Losses are in nats on "
        f"validation text, intervals of 95%. Written by `{command}` from the runs themselves.",
        _markdown_table(_overview(studies)),
        *(part for results in studies for part in _result(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _overview(studies: Sequence[StudyResults]) -> Table:
    rows = []
    for results in studies:
        study, verdict = results.study, results.verdict()
        first = verdict.contrasts[0] if verdict.contrasts else None
        answer = deciding(first, study).value if first else "-"
        difference = tables.interval(first, verdict.noise) if first else "-"
        rows.append((study.name, study.question, verdict.reply or "-", answer, difference))
    header = ("study", "question", "reply", "winner is", "difference in val loss")
    return Table(title="", header=header, rows=tuple(rows))


def _result(results: StudyResults) -> list[str]:
    study, verdict, environment = results.study, results.verdict(), results.environment
    summary = tables.summary(results.frames, study, verdict)
    begun = results.trials["started"].min()
    machine = ", ".join(str(environment.get(key, "?")) for key in ("device_name", "cores", "precision"))
    runs = results.trials["outcome"].value_counts()
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in runs.items() if count)
    hours = results.trials["train_seconds"].sum() / 3600
    noise = [f"Noise: {verdict.noise}."] if verdict.noise else []
    return [
        f"## {_md(study.name)}",
        f"> {_md(study.question)}",
        f"**{_md(verdict.sentence)}**",
        _markdown_table(summary),
        _md(" ".join([summary.note, *noise])),
        f"`hpstudy run {study.name}`, begun {begun:%Y-%m-%d}, commit `{environment.get('git_commit') or '?'}`, "
        f"hpstudy {environment.get('hpstudy', '?')}, torch {environment.get('torch', '?')}; {_md(machine)}; "
        f"{len(results.trials)} runs ({outcomes}), {hours:.2f} hours of training.",
    ]
