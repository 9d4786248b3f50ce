"""`status`: where every study stands in one line each, or one study with its next step.

What needs pandas is imported once a study has begun: it takes half a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from hpstudy.cli.common import out, print_json
from hpstudy.cli.layout import Column, as_table, widest
from hpstudy.errors import HpstudyError
from hpstudy.files import command
from hpstudy.study import list_studies, study_name
from hpstudy.tracking.store import begun_ladders, begun_studies


def status(name: str | None, runs: Path, *, as_json: bool = False) -> None:
    """One line per study, or one study's phases, answer and next step."""
    if name is not None and study_name(name) in begun_ladders(runs):
        _ladder(study_name(name), runs, as_json=as_json)
    elif name is not None:
        _study(study_name(name), runs, as_json=as_json)
    elif as_json:
        print_json({"studies": list(_overviews(runs))})
    else:
        _print_studies(out(), runs)


def _names(runs: Path) -> tuple[list[str], dict[str, str]]:
    """(the studies that have begun, name -> question of the others that can be run by name)."""
    begun, ladders = begun_studies(runs), begun_ladders(runs)
    return begun, {name: question for name, question in list_studies() if name not in (*begun, *ladders)}


def _study(name: str, runs: Path, *, as_json: bool) -> None:
    from hpstudy.cli.loading import loaded
    from hpstudy.cli.study_status import print_study

    results = loaded(name, runs)
    if as_json:
        from hpstudy.analysis.overview import overview

        print_json(overview(results))
    else:
        print_study(out(), results)


def _ladder(name: str, runs: Path, *, as_json: bool) -> None:
    """Prints what a ladder has found so far, and writes nothing."""
    from hpstudy.analysis.ladders import begun_ladder
    from hpstudy.cli.ladder_command import as_values
    from hpstudy.report.ladder import ladder_screen

    found = begun_ladder(name, runs)
    if as_json:
        print_json(as_values(found, None))
    else:
        out().print(ladder_screen(found, out().width), soft_wrap=True, end="")


def _start(name: str, runs: Path) -> str:
    return command("run", name, runs)


def _overviews(runs: Path) -> Iterator[dict[str, Any]]:
    from hpstudy.analysis.overview import overview, unknown
    from hpstudy.analysis.state import Stage
    from hpstudy.cli.loading import loaded
    from hpstudy.cli.study_status import UNREADABLE

    begun, waiting = _names(runs)
    for name in begun:
        try:
            yield overview(loaded(name, runs))
        except HpstudyError as error:
            yield unknown(name, stage=UNREADABLE, problems=str(error).splitlines())
    for name, question in waiting.items():
        following = {"step": "run", "advice": "run it", "command": _start(name, runs)}
        yield unknown(name, question=question, stage=str(Stage.NOT_BEGUN), next=following)


def _print_studies(console: Console, runs: Path) -> None:
    begun, waiting = _names(runs)
    if begun:
        from hpstudy.cli.study_status import layouts, study_lines

        lines = list(study_lines(begun, runs))
        shown = widest(list(layouts(lines)), console.width)
        console.print(as_table(shown))
        console.print("best and baseline: val loss in nats, or tokens per second", style="dim")
        for ladder in begun_ladders(runs):
            console.print(f"{ladder}: a ladder; `{command('status', ladder, runs)}` shows its rungs", soft_wrap=True)
        if all(column.heading != "command" for column in shown):
            for line in lines:
                console.print(f"{line.name}: {line.command}", soft_wrap=True)
        for line in lines:
            if line.running:
                console.print(f"{line.name}: {line.running}", soft_wrap=True)
        console.print(f"`{command('status', 'NAME', runs)}` explains the next step\n", style="dim", soft_wrap=True)
    if waiting:
        names, questions = Column(heading="not begun", cells=list(waiting)), list(waiting.values())
        console.print(as_table([names, Column(heading="question", cells=questions)]))
        console.print(f"`{_start('NAME', runs)}` begins one", style="dim", soft_wrap=True)
    if not (begun or waiting):
        console.print("no study has begun, and there is no study file here")
