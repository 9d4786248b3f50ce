"""`status`, `report`, `export`, `compare`, `results` and `dashboard`: what studies have found so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from hpstudy.analysis.dashboard import study_note, trial_attributes
from hpstudy.analysis.export import Format
from hpstudy.analysis.export import export as write_tables
from hpstudy.analysis.frames import load as load_frames
from hpstudy.analysis.results import StudyResults, best_by_loss, load
from hpstudy.cli.common import err, out, say
from hpstudy.errors import HpstudyError, UserError
from hpstudy.files import command
from hpstudy.records import Outcome
from hpstudy.search import JOURNAL, Search
from hpstudy.search.dashboard import serve
from hpstudy.search.importance import importances
from hpstudy.study import list_studies, load_frozen, study_name
from hpstudy.study.ranking import ranks_by_loss
from hpstudy.tracking.store import RunStore, begun_studies

OUTCOMES = tuple(Outcome)
WORDS = ("study", "winner", "answer")  # columns of text
MAX_STEM = 200  # characters of a file's name


def status(name: str | None, runs: Path) -> None:
    """One line per study, or one study's phases and its best trial."""
    if name is None:
        _print_studies(runs)
    else:
        _print_runs(loaded(study_name(name), runs))


def report(name: str, runs: Path) -> None:
    """Writes the report of a study as far as it is, and prints the path of the page."""
    out().print(str(report_page(loaded(study_name(name), runs))), soft_wrap=True)


def report_page(results: StudyResults) -> Path:
    """Writes the report and returns the path of its page."""
    from hpstudy.report import write_report  # plotly takes half a second to import

    assert results.store is not None
    root, study = results.store.root, results.study
    trials = Search(study, root / JOURNAL, read_only=True).trials()
    return write_report(results, root / "report", importances=importances(study, trials))


def export(name: str, runs: Path, fmt: Format) -> None:
    """Writes the tables and prints their paths."""
    study = study_name(name)
    frames = load_frames(study, runs=runs)
    _warn(*frames.problems)
    for path in write_tables(frames, runs / study / "export", fmt):
        out().print(str(path), soft_wrap=True)


def compare(names: Sequence[str], runs: Path) -> None:
    """Prints the studies' questions and their table, writes the page, and prints its path last."""
    from hpstudy.report import finding, side_by_side, write_side_by_side  # plotly takes half a second to import
    from hpstudy.report.compare import incomparable

    findings = [finding(found) for found in all_loaded(names, runs)]
    if len(findings) < 2:
        one = " ".join(names)
        raise UserError(f"compare {one}: takes two studies or more; `{command('report', names[0], runs)}` shows one")
    console = out()
    for found in findings:
        console.print(f"{found.study.name}: {found.study.question}")
    shown = side_by_side(findings)
    table = Table(caption=shown.note, caption_justify="left", box=None, pad_edge=False, header_style="dim")
    for heading in shown.header:
        table.add_column(_in_two_lines(heading), justify="left" if heading in WORDS else "right")
    for row in shown.rows:
        table.add_row(*map(_in_two_lines, row))
    console.print(table)
    for sentence in incomparable(findings):
        console.print(sentence)
    stem = "+".join(found.study.name for found in findings)[:MAX_STEM]
    console.print(str(write_side_by_side(findings, runs / "compare" / f"{stem}.html")), soft_wrap=True)


def results(names: Sequence[str], runs: Path) -> None:
    """Prints the answers of studies as Markdown; of all that have begun if none is named."""
    from hpstudy.report import results_markdown  # plotly takes half a second to import

    begun = begun_studies(runs)
    if not (names or begun):
        raise UserError(f"{runs}: no study has begun there; start one with `{command('run', 'NAME', runs)}`")
    print(results_markdown(all_loaded(names, runs) if names else list(readable(begun, runs))), end="")


def dashboard(name: str, runs: Path, host: str, port: int) -> None:
    """Serves optuna-dashboard until Ctrl-C."""
    store = RunStore(runs / study_name(name))
    journal = store.root / JOURNAL
    if not journal.exists():
        raise UserError(f"{journal}: no search has begun; start it with `{command('run', name, runs)}`")
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


def _print_studies(runs: Path) -> None:
    table = Table("study", "runs", "finished", "lowest val loss", "question", box=None, header_style="dim")
    questions = dict(list_studies())
    begun = begun_studies(runs)
    for name in sorted({*questions, *begun}):
        try:
            counts = _counts(name, runs) if name in begun else ("-", "-", "-")
        except HpstudyError as error:
            _warn(f"{name}: {error}")
            counts = ("?", "?", "?")
        table.add_row(name, *counts, questions.get(name, "(no study file here)"))
    out().print(table)


def _counts(name: str, runs: Path) -> tuple[str, str, str]:
    """(runs, those that ended, the best loss of the search) of a study that has begun."""
    trials = load_frames(name, runs=runs).trials
    best = best_by_loss(trials)
    loss = f"{best['val_loss'].iloc[0]:.4f}" if len(best) else "-"
    return str(len(trials)), str(trials["outcome"].notna().sum()), loss


def _print_runs(results: StudyResults) -> None:
    trials, ranked, sentence = results.trials, results.ranked(), results.verdict().sentence
    table = Table("phase", "runs", *OUTCOMES, "unfinished", box=None, header_style="dim")
    for phase, runs in trials.groupby("phase", observed=True):
        counts = runs["outcome"].value_counts()
        table.add_row(
            str(phase),
            str(len(runs)),
            *(str(int(counts.get(outcome, 0))) for outcome in OUTCOMES),
            str(int(runs["outcome"].isna().sum())),
        )
    console = out()
    console.print(table)
    if len(ranked):
        best = ranked.iloc[0]
        by_loss = ranks_by_loss(results.study.metrics)
        score = f"val loss {best['val_loss']:.4f}" if by_loss else f"{best['tok_per_sec']:,.0f} tok/s"
        console.print(f"best of the search: {score} ({best['run_id']}, one seed)")
    console.print(sentence, soft_wrap=True)
    if noise := results.noise:
        console.print(f"noise: {noise}")
    resume = command("run", results.name, results.frames.runs)
    wanted = trials["outcome"].isna() & ~trials["run_id"].isin(results.fresh.ahead)
    for run_id in trials.loc[wanted, "run_id"]:
        console.print(f"unfinished: {run_id}; `{resume}` resumes it", soft_wrap=True)


def loaded(name: str, runs: Path) -> StudyResults:
    """The results of a study, after a warning for each run that is left out of them. Raises as `load` does."""
    results = load(name, runs)
    _warn(*results.frames.problems)
    return results


def _warn(*problems: str) -> None:
    for problem in problems:
        say(f"warning: {problem}")


def all_loaded(names: Sequence[str], runs: Path) -> list[StudyResults]:
    """Each study once. Raises UserError with the problems of all names."""
    found: dict[str, StudyResults] = {}
    problems: list[str] = []
    for name in names:
        try:
            results = loaded(study_name(name), runs)
            found[results.study.name] = results
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(dict.fromkeys(problems))  # a name given twice has its problems once
    return list(found.values())


def readable(names: Sequence[str], runs: Path) -> Iterator[StudyResults]:
    """The results of the studies that can be read, with a warning for each other one."""
    for name in names:
        try:
            yield loaded(name, runs)
        except HpstudyError as error:
            _warn(f"{name}: {error}")


def _in_two_lines(cell: str) -> str:
    """A mean above its error, a difference above its interval, for narrow terminals."""
    return cell.replace(" ±", "\n±").replace(" [", "\n[")
