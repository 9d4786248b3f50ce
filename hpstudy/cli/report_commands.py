"""`report`, `export`, `compare`, `results` and `dashboard`: what studies have found so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hpstudy.analysis.frames import load as load_frames
from hpstudy.analysis.ladders import begun_ladder, optima_table, parts, regrets_table
from hpstudy.analysis.overview import overview
from hpstudy.analysis.results import StudyResults
from hpstudy.cli.common import err, out, print_json
from hpstudy.cli.layout import Column, as_table, say_table, widest
from hpstudy.cli.loading import loaded, readable, warn
from hpstudy.errors import UserError
from hpstudy.files import command, write_atomic
from hpstudy.search import JOURNAL
from hpstudy.study import load_frozen, run_command, study_name
from hpstudy.tracking.store import RunStore, begun_ladders, begun_studies

if TYPE_CHECKING:
    from hpstudy.analysis.export import Format
    from hpstudy.report.compare import Finding
    from hpstudy.report.tables import Table

WORDS = ("study", "winner", "answer", "")  # columns of text
MAX_STEM = 200  # characters of a file's name


def report(name: str, runs: Path, *, figures: bool = False, as_json: bool = False) -> None:
    """Writes the report of a study as far as it is, and prints the path of the page."""
    results = loaded(study_name(name), runs)
    page = report_page(results, figures=figures)
    if as_json:
        print_json(overview(results))
    else:
        out().print(str(page), soft_wrap=True)


def report_page(results: StudyResults, *, figures: bool = False) -> Path:
    """Writes the report and returns the path of its page. With `figures`, `report.md` has its own beside it."""
    from hpstudy.report import write_report  # plotly takes half a second to import, and so does Optuna
    from hpstudy.search import Search
    from hpstudy.search.importance import importances

    assert results.store is not None
    root, study = results.store.root, results.study
    trials = Search(study, root / JOURNAL, read_only=True).trials()
    return write_report(results, root / "report", importances=importances(study, trials), images=figures)


def export(name: str, runs: Path, fmt: Format) -> None:
    """Writes the tables and prints their paths; of a ladder those of its parts and, as CSV, its optima and regrets."""
    from hpstudy.analysis.export import export as write_tables

    study = study_name(name)
    for part in parts(study, runs):
        frames = load_frames(part, runs=runs)
        warn(*frames.problems)
        for path in write_tables(frames, runs / part / "export", fmt):
            out().print(str(path), soft_wrap=True)
    if study in begun_ladders(runs):
        found, folder = begun_ladder(study, runs), runs / study / "export"
        for stem, table in (("optima", optima_table(found)), ("regrets", regrets_table(found))):
            write_atomic(folder / f"{stem}.csv", table.to_csv(index=False))
            out().print(str(folder / f"{stem}.csv"), soft_wrap=True)


def compare(names: Sequence[str], runs: Path, *, as_json: bool = False) -> None:
    """Prints the studies' questions and tables, writes the page, and prints its path last."""
    from hpstudy.report import finding, write_side_by_side  # plotly takes half a second to import
    from hpstudy.report.compare import incomparable

    findings = [finding(found) for found in all_loaded(names, runs)]
    if len(findings) < 2:
        one = " ".join(names)
        raise UserError(f"compare {one}: takes two studies or more; `{command('report', names[0], runs)}` shows one")
    stem = "+".join(found.study.name for found in findings)[:MAX_STEM]
    page = write_side_by_side(findings, runs / "compare" / f"{stem}.html")
    if as_json:
        studies = [overview(found.results) for found in findings]
        print_json({"studies": studies, "incomparable": list(incomparable(findings)), "page": str(page)})
    else:
        _print_comparison(out(), findings, runs)
        out().print(str(page), soft_wrap=True)


def _print_comparison(console: Console, findings: Sequence[Finding], runs: Path) -> None:
    from hpstudy.report.compare import IN_SHORT, REPORT, incomparable, side_by_side, values

    for found in findings:
        console.print(f"{found.study.name}: {found.study.question}")
    console.print()
    shown = side_by_side(findings)
    columns = list(_columns(shown))
    shorter = [column for column in columns if column.heading in IN_SHORT]
    console.print(as_table(widest([columns, shorter], console.width)))
    console.print(shown.note, style="dim")
    if (winners := values(findings)).rows:
        console.print()
        say_table(console, list(_columns(winners)))
        console.print(winners.note, style="dim")
    for sentence in incomparable(findings):
        console.print(f"\n{sentence}")
    console.print()
    for each in findings:
        report = each.results.store.root / REPORT if each.results.store else None
        missing = f"`{command('report', each.study.name, runs)}` writes its report"
        shown_path = str(report) if report and report.exists() else missing
        console.print(f"{each.study.name}: {shown_path}", soft_wrap=True)


def _columns(table: Table) -> Iterator[Column]:
    """The columns of a table, numbers to the right, a mean above its error, a difference above its interval."""
    for place, heading in enumerate(table.header):
        comma = ",\n" if heading == "answer" else ", "
        cells = [row[place].replace(" ±", "\n±").replace(" [", "\n[").replace(", ", comma) for row in table.rows]
        yield Column(heading=heading.replace(" [", "\n["), cells=cells, right=heading not in WORDS)


def results(names: Sequence[str], runs: Path, *, as_json: bool = False) -> None:
    """Prints the answers of studies and ladders as Markdown; of all that have begun if none is named.

    A ladder is one answer: the studies of its parts are not listed beside it.
    """
    from hpstudy.analysis.rules import rule_records
    from hpstudy.analysis.together import adjusted_levels, cautions
    from hpstudy.cli.ladder_command import as_values
    from hpstudy.report import results_markdown  # plotly takes half a second to import
    from hpstudy.report.ladder import ladder_results_markdown

    begun, stems = begun_studies(runs), begun_ladders(runs)
    if not (names or begun):
        raise UserError(f"{runs}: no study has begun there; start one with `{command('run', 'NAME', runs)}`")
    ladders = [begun_ladder(stem, runs) for stem in stems if not names or stem in map(study_name, names)]
    if names:
        found = all_loaded([name for name in names if study_name(name) not in stems], runs)
    else:
        found = [results for results in readable(begun, runs) if results.study.part_of not in stems]
    if as_json:
        levels = zip(found, adjusted_levels(found), strict=True)
        print_json(
            {
                "studies": [overview(results) | {"p_adjusted": level} for results, level in levels],
                "cautions": list(cautions(found)),
                "rules": [asdict(record) for record in rule_records(found)],
                "ladders": [as_values(ladder, None) for ladder in ladders],
            }
        )
    else:
        texts = [results_markdown(found)] if found or not ladders else []
        print("\n".join([*texts, *map(ladder_results_markdown, ladders)]), end="")


def dashboard(name: str, runs: Path, host: str, port: int) -> None:
    """Serves optuna-dashboard until Ctrl-C."""
    from hpstudy.analysis.dashboard import study_note, trial_attributes
    from hpstudy.search.dashboard import serve

    store = RunStore(runs / study_name(name))
    journal = store.root / JOURNAL
    if not journal.exists():
        start = run_command(store.root) if store.root.exists() else command("run", name, runs)
        raise UserError(f"{journal}: no search has begun; start it with `{start}`")
    err().print(f"optuna-dashboard on http://{host}:{port}/ (Ctrl-C ends it)")
    try:
        serve(
            load_frozen(store.root),
            journal,
            host,
            port,
            note=partial(study_note, store),
            attributes=partial(trial_attributes, store),
        )
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: must be an address that is free here, but got: {error.strerror}; "
            "choose another port"
        ) from error


def all_loaded(names: Sequence[str], runs: Path) -> list[StudyResults]:
    """Each study once, and each part of a ladder. Raises UserError with the problems of all names."""
    found: dict[str, StudyResults] = {}
    problems: list[str] = []
    for name in [part for given in names for part in _parts(given, runs)]:
        try:
            results = loaded(study_name(name), runs)
            found[results.study.name] = results
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(dict.fromkeys(problems))  # a name given twice has its problems once
    return list(found.values())


def _parts(name: str, runs: Path) -> list[str]:
    """The parts of a ladder, or the name as it was given."""
    stem = Path(name).stem if name.endswith(".toml") else name
    return parts(stem, runs) if stem in begun_ladders(runs) else [name]
