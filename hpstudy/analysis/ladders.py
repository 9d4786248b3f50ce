"""The ladders that have begun in a folder of runs: loaded, with their parts, and as tables for pandas."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.results import load
from hpstudy.analysis.rungs import Estimate, Rung, raw_keys, shown_key
from hpstudy.errors import HpstudyError, UserError
from hpstudy.files import command, json_object, read_json
from hpstudy.statistics.scaling import least_trials
from hpstudy.study import num_trials
from hpstudy.study.frozen import LADDER_FILE, SOURCE
from hpstudy.study.ladder import CHECK, TARGET, Ladder, Size, fitted_keys, load_ladder, parse_ladder
from hpstudy.tracking.store import begun_ladders, begun_studies

MAY_CHANGE = (TARGET, f"{TARGET}_tokens")  # keys of [ladder] after it has begun


def load_ladder_results(ladder: Ladder, runs: Path) -> LadderResults:
    """What a ladder has found so far in the folder `runs`."""
    begun = set(begun_studies(runs))

    def rung(size: Size, label: str) -> Rung | None:
        name = ladder.part(label)
        if name not in begun:
            return None
        results = load(name, runs)
        found = Rung(size=size, results=results, keys=fitted_keys(results.study))
        return found if found.finished else None

    rungs: list[Rung] = []
    for size in ladder.rungs:
        found = rung(size, size.label)
        if found is None:
            break
        rungs.append(found)
    check = rung(ladder.check, CHECK) if ladder.check is not None else None
    names = {side: ladder.side_part(side) for side in ladder.sides}
    sides = {side: load(name, runs) for side, name in names.items() if name in begun}
    return LadderResults(ladder=ladder, runs=runs, rungs=tuple(rungs), check=check, sides=sides)


def refuse_too_few(ladder: Ladder) -> None:
    """Raises UserError if a rung or the check has too few trials for an optimum."""
    problems = []
    parts = [(size, "trials") for size in ladder.rungs] + ([(ladder.check, "check_trials")] if ladder.check else [])
    for size, key in parts:
        study = ladder.study(ladder.rung_text(size), ladder.part(size.label))
        keys, trials = fitted_keys(study), num_trials(study)
        if trials < (least := least_trials(len(keys))):
            problems.append(
                f"{ladder.path}: [ladder] {key}: the optimum of {len(keys)} searched keys takes at least {least} "
                f"trials, but {size.label} has {trials}"
            )
    if problems:
        raise UserError(problems)


def begun_ladder(name: str, runs: Path) -> LadderResults:
    """The ladder that has begun under that name in the folder `runs`. Raises UserError if there is none."""
    path = runs / name / LADDER_FILE
    if not path.exists():
        raise UserError(f"{runs / name}: no ladder has begun there; start it with `{command('run', name, runs)}`")
    began = parse_ladder(path.read_text(encoding="utf-8"), name=name, path=path)
    return load_ladder_results(with_target_of_today(began, path.parent), runs)


def with_target_of_today(began: Ladder, root: Path) -> Ladder:
    """The ladder as it began, with the target that its own file states now: it may change, as nothing trains on it."""
    with suppress(HpstudyError, KeyError, TypeError):
        kept = read_json(root / SOURCE, json_object) or {}
        now = load_ladder(str(Path(root.resolve(), str(kept["path"])).resolve()))
        changes = {key: getattr(now.table, key) for key in MAY_CHANGE}
        return replace(began, table=began.table.model_copy(update=changes), target=now.target)
    return began


def parts(name: str, runs: Path) -> list[str]:
    """The studies that have begun of the ladder of that name in the folder `runs`; of a study its name alone."""
    if name not in begun_ladders(runs):
        return [name]
    path = runs / name / LADDER_FILE
    ladder, begun = parse_ladder(path.read_text(encoding="utf-8"), name=name, path=path), set(begun_studies(runs))
    rungs = (size.label for size in ladder.rungs)
    named = [*(ladder.part(label) for label in (*rungs, CHECK)), *map(ladder.side_part, ladder.sides)]
    return [each for each in named if each in begun]


def optima_table(results: LadderResults) -> pd.DataFrame:
    """A row for each rung and the check, and a prediction for each size beyond them, with intervals.

    Columns: study, part (rung, check, predicted check or predicted target), weights, tokens, key, value, low, high.
    """
    ladder, rows = results.ladder, list[dict[str, Any]]()

    def add(part: str, name: str, size: Size, estimates: Mapping[str, Estimate | None]) -> None:
        for key, found in estimates.items():
            ends = {"value": found.value, "low": found.low, "high": found.high} if found else {}
            rows.append(
                {"study": name, "part": part, "weights": size.weights, "tokens": size.tokens, "key": shown_key(key)}
                | ends
            )

    for rung in results.searched:
        part = "check" if rung is results.check else "rung"
        add(part, rung.results.name, rung.size, {key: rung.estimate(key) for key in rung.keys})
    for part, size in ((CHECK, ladder.check), (TARGET, ladder.target)):
        if size is not None and results.laws:
            add(f"predicted {part}", ladder.part(part), size, {k: results.estimate(k, size) for k in results.laws})
    columns = ["study", "part", "weights", "tokens", "key", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def regrets_table(results: LadderResults) -> pd.DataFrame:
    """The sides of the check: side, loss, regret with its 95% interval (nats), seeds, and the searched raw values."""
    keys = raw_keys(results.keys)
    return pd.DataFrame(
        [
            {"side": r.side, "loss": r.loss, "regret": r.regret, "low": r.low, "high": r.high, "seeds": r.seeds}
            | {key: getattr(r.hparams, key) for key in keys}
            for r in results.regrets
        ],
        columns=["side", "loss", "regret", "low", "high", "seeds", *keys],
    )
