"""A ladder's training: its rungs from small to large, then the check, each a study of its own."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.ladders import MAY_CHANGE, load_ladder_results, refuse_too_few
from hpstudy.analysis.results import load
from hpstudy.analysis.rungs import nearest
from hpstudy.analysis.state import Stage, state
from hpstudy.cli.common import err, say
from hpstudy.cli.ladder_command import finish
from hpstudy.cli.report_commands import report_page
from hpstudy.cli.study_commands import flags_of, train
from hpstudy.errors import UserError
from hpstudy.files import command, write_atomic
from hpstudy.study.frozen import LADDER_FILE, SOURCE, source_of
from hpstudy.study.ladder import CHECK, TABLE, Ladder, Size, load_ladder, parse_ladder, write_part
from hpstudy.study.schema import FORMAT
from hpstudy.tracking.store import RunStore, begun_studies

if TYPE_CHECKING:
    from hpstudy.running.interface import Options


def run(name: str, options: Options, *, as_json: bool = False) -> None:
    """Runs or resumes every part of a ladder, writes its page and the target's study, and prints what it found."""
    if options.trials is not None:
        raise UserError("--trials: a ladder's trials are those of [ladder] trials; edit the file before it begins")
    ladder = load_ladder(name)
    refuse_too_few(ladder)
    ladder = begun(ladder, options.runs)
    err().print(f"{ladder.name}: {ladder.question}")
    for size in ladder.rungs:
        found = load_ladder_results(ladder, options.runs)
        start = _start(found, size)
        text = ladder.rung_text(size, [start] if start.keys() == found.study_at(size).space.keys() else [])
        _train(ladder, options, ladder.part(size.label), text, name)
    if ladder.check is not None:
        for part, text in _check_parts(ladder, options.runs):
            _train(ladder, options, part, text, name)
    finish(load_ladder_results(ladder, options.runs), as_json=as_json)


def begun(ladder: Ladder, runs: Path) -> Ladder:
    """The ladder as it began in the folder `runs`, or as it begins now. Raises UserError if its file has changed."""
    path = runs / ladder.name / LADDER_FILE
    if RunStore(path.parent).begun:
        raise UserError(f"{path.parent}: a study of that name has begun there; give the ladder another name")
    if not path.exists():
        RunStore(path.parent).create()
        states = "format" in tomllib.loads(ladder.text)
        text = ladder.text if states else f"format = {FORMAT}  # hpstudy's newest when the ladder began\n{ladder.text}"
        write_atomic(path, text)
    before = parse_ladder(path.read_text(encoding="utf-8"), name=ladder.name, path=path)
    if changes := list(_changes(before, ladder)):
        raise UserError(
            f"{ladder.path}: changed after its ladder began: {change}; put the values back, or copy the file under "
            "another name for another ladder"
            for change in changes
        )
    write_atomic(path.parent / SOURCE, json.dumps(source_of(ladder.path, path.parent)) + "\n")
    return replace(before, table=ladder.table, target=ladder.target)


def _changes(before: Ladder, now: Ladder) -> Iterator[str]:
    """`[search] lr: was ..., is ...` for each key that may not change and has."""
    old, new = (
        {**ladder.data, TABLE: ladder.table.model_dump(mode="json", exclude=set(MAY_CHANGE))}
        for ladder in (before, now)
    )
    old.setdefault("format", FORMAT)
    new.setdefault("format", old["format"])
    for section in dict.fromkeys([*old, *new]):
        was, is_ = old.get(section), new.get(section)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            for key in dict.fromkeys([*was, *is_]):
                if was.get(key) != is_.get(key):
                    yield f"[{section}] {key}: was {json.dumps(was.get(key))}, is {json.dumps(is_.get(key))}"
        elif was != is_:
            yield f"{section}: was {json.dumps(was)}, is {json.dumps(is_)}"


def _start(found: LadderResults, size: Size) -> Mapping[str, Any]:
    """The point that a rung tries first: what the laws of the smaller ones predict there. Empty without a loss yet."""
    smaller = tuple(
        rung for rung in found.rungs if found.ladder.rungs.index(rung.size) < found.ladder.rungs.index(size)
    )
    if not smaller:
        return {}
    space, point = smaller[-1].study.space, replace(found, rungs=smaller).point(size)
    return {key: value if isinstance(value, str) else nearest(space[key], value) for key, value in point.items()}


def _check_parts(ladder: Ladder, runs: Path) -> Iterator[tuple[str, str]]:
    """The name and the file of each part of the check: its search, then its sides."""
    assert ladder.check is not None
    seeds = ladder.check_seeds
    yield ladder.part(CHECK), ladder.check_text(ladder.check, seeds)
    found = load_ladder_results(ladder, runs)
    for side, values in found.side_values(ladder.check).items():
        yield ladder.side_part(side), ladder.side_text(ladder.check, side, values, seeds)


def _train(ladder: Ladder, options: Options, part: str, text: str, name: str) -> None:
    """Trains a part of the ladder to its end, unless it has ended, and writes its report."""
    if part in begun_studies(options.runs) and state(load(part, options.runs)).stage in (Stage.DONE, Stage.UNDECIDED):
        return
    path = write_part(options.runs / ladder.name, part, text)
    train(str(path), options, resume=command("run", name, options.runs, *flags_of(options)))
    results = load(part, options.runs)
    say(f"{part}: {report_page(results)}")
