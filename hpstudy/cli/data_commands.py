"""`status`, `export`, `report` and `dashboard`: what is there, as people and programs want it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table

from hpstudy.analysis.export import Format
from hpstudy.analysis.export import export as write_tables
from hpstudy.analysis.frames import load
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.results import load as load_results
from hpstudy.cli.consoles import err, out
from hpstudy.errors import UserError
from hpstudy.records import Outcome
from hpstudy.search import Search
from hpstudy.search.dashboard import serve
from hpstudy.search.importance import importances
from hpstudy.study import list_studies, study_name
from hpstudy.tracking.store import RunStore

OUTCOMES = tuple(Outcome)


def status(name: str | None, runs: Path) -> None:
    """One line per study, or one study's phases and its best run."""
    if name is None:
        _print_studies(runs)
    else:
        _print_runs(load_results(study_name(name), runs))


def export(name: str, runs: Path, fmt: Format) -> None:
    """Writes the tables and prints their paths."""
    study = study_name(name)
    for path in write_tables(load(study, runs=runs), runs / study / "export", fmt):
        out().print(str(path), soft_wrap=True)


def report(name: str, runs: Path) -> None:
    """Writes the report of a study as it began, with what it has so far, and prints the page's path."""
    study = study_name(name)
    out().print(str(report_page(load_results(study, runs), RunStore(runs / study))), soft_wrap=True)


def report_page(results: StudyResults, store: RunStore) -> Path:
    """The page of the report, written anew."""
    from hpstudy.report import write_report  # plotly takes half a second to import

    study = results.study
    return write_report(
        results.frames,
        study,
        results.verdict(),
        results.environment,
        store.root / "report",
        importances=importances(study, Search(study, store.root / "optuna.journal", read_only=True).trials()),
    )


def dashboard(name: str, runs: Path, host: str, port: int) -> None:
    """Serves optuna-dashboard until Ctrl-C."""
    study = study_name(name)
    journal = runs / study / "optuna.journal"
    if not journal.exists():
        raise UserError(f"{journal}: no search has begun; start it with `hpstudy run {name}`")
    err().print(f"optuna-dashboard on http://{host}:{port}/ (Ctrl-C ends it)")
    try:
        serve(journal, host, port)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: must be an address that is free here, but got: {error.strerror}; "
            "choose another port"
        ) from error


def _print_studies(runs: Path) -> None:
    table = Table("study", "runs", "finished", "best of search", "question", box=None, header_style="dim")
    questions = dict(list_studies()) if Path("studies").is_dir() else {}
    begun = {path.parent.name for path in runs.glob("*/study.json")}
    for name in sorted(questions.keys() | begun):
        counts = ("-", "-", "-")
        if name in begun:
            trials = load(name, runs=runs).trials
            best = trials.loc[(trials["outcome"] == "complete") & (trials["phase"] == "search"), "val_loss"].min()
            counts = (str(len(trials)), str(trials["outcome"].notna().sum()), "-" if pd.isna(best) else f"{best:.4f}")
        table.add_row(name, *counts, questions.get(name, "(no study file here)"))
    out().print(table)


def _print_runs(results: StudyResults) -> None:
    frames = results.frames
    table = Table("phase", "runs", *OUTCOMES, "unfinished", box=None, header_style="dim")
    for phase, runs in frames.trials.groupby("phase", observed=True):
        counts = runs["outcome"].value_counts()
        table.add_row(
            str(phase),
            str(len(runs)),
            *(str(int(counts.get(outcome, 0))) for outcome in OUTCOMES),
            str(int(runs["outcome"].isna().sum())),
        )
    console = out()
    console.print(table)
    complete = frames.trials[(frames.trials["outcome"] == "complete") & (frames.trials["phase"] == "search")]
    if len(complete):
        best = complete.sort_values("val_loss").iloc[0]
        console.print(f"lowest val loss of the search {best['val_loss']:.4f} ({best['run_id']}, one seed)")
    console.print(results.verdict().sentence)
    if noise := results.noise:
        console.print(f"noise: {noise}")
    for _, run in frames.trials[frames.trials["outcome"].isna()].iterrows():
        console.print(f"unfinished: {run['run_id']}; `hpstudy run {frames.name}` goes on with it")
