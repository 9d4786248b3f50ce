"""`workspace`, `compare` and `results`: studies for others to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from hpstudy.analysis.results import StudyResults, load
from hpstudy.cli.common import err, out
from hpstudy.errors import UserError
from hpstudy.files import command
from hpstudy.study import study_name
from hpstudy.tracking.store import begun_studies
from hpstudy.tracking.wandb_settings import require_login, resolve_project
from hpstudy.tracking.wandb_views import build, default_entity

WORDS = ("study", "winner", "answer")  # columns of text
MAX_STEM = 200  # characters of a file's name


def workspace(name: str, runs: Path, save: bool) -> None:
    """Prints the views' JSON without any network, or saves them and prints their addresses."""
    loaded = load(study_name(name), runs)
    study = loaded.study
    if save:
        require_login("--save: ")
    project, entity = resolve_project(study.project, study.entity)
    trials = loaded.trials
    reference = trials["run_id"] == study.baseline_run_id
    baselines = [
        *trials.loc[reference, "wandb_id"],
        *trials.loc[~reference & (trials["phase"] == "baseline"), "wandb_id"],
    ]
    views = build(
        study,
        sentence=loaded.verdict().sentence,
        baselines=baselines,
        project=project,
        entity=entity or (default_entity() if save else ""),
    )
    if save:
        for url in views.save():
            out().print(url, soft_wrap=True)
    else:
        out().print(json.dumps(views.spec(), indent=2), soft_wrap=True)
        save_it = command("workspace", name, runs, "--save")
        err().print(f"not saved: `{save_it}` sends both to W&B, in the project {project}", soft_wrap=True)


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
    print(results_markdown(all_loaded(names or begun, runs)), end="")


def all_loaded(names: Sequence[str], runs: Path) -> list[StudyResults]:
    """Each study once. Raises UserError with the problems of all names."""
    found: dict[str, StudyResults] = {}
    problems: list[str] = []
    for name in names:
        try:
            loaded = load(study_name(name), runs)
            found[loaded.study.name] = loaded
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return list(found.values())


def _in_two_lines(cell: str) -> str:
    """A mean above its error, a difference above its interval, for narrow terminals."""
    return cell.replace(" ±", "\n±").replace(" [", "\n[")
