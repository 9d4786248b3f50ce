"""A study in a notebook: `hpstudy.load`, and how a loaded study shows itself."""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.answers import SPEED
from hpstudy.analysis.in_short import found_name, in_short, opponent
from hpstudy.analysis.ladder import LadderResults
from hpstudy.analysis.ladders import begun_ladder, optima_table, parts, regrets_table
from hpstudy.analysis.measured import Measured, measured
from hpstudy.analysis.numbers import plain
from hpstudy.analysis.results import StudyResults, best_by_loss
from hpstudy.analysis.results import load as load_results
from hpstudy.analysis.state import state
from hpstudy.errors import HpstudyError
from hpstudy.records import Outcome
from hpstudy.study import Study
from hpstudy.tracking.store import begun_ladders

TABLES = ".trials, .steps, .ranked(), .confirmed, .verdict(), .noise, .best, .plot()"
WANDB_TABLES = ".trials, .steps, .halflives, .best"
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedStudy(StudyResults):
    """A study's tables and what follows from them. A notebook shows it as one screen."""

    def plot(self) -> dict[str, go.Figure]:
        """The report's figures by title, as plotly draws them. None for tables from W&B, which have no study file."""
        from hpstudy.report import figures  # drawing is not needed to load

        return figures(self) if self.store else {}

    def __repr__(self) -> str:
        heading, facts, values = _shown(self)
        width = max(len(label) for label, _ in facts)
        lines = [heading, *(f"  {label:<{width}}  {text}" for label, text in facts)]
        sizes = [max(map(len, column)) for column in zip(*values, strict=True)]
        for key, *cells in values:
            aligned = [key.ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(cells, sizes[1:], strict=True))]
            lines.append(" " * (width + 4) + "  ".join(aligned).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heading, facts, values = _shown(self)
        rows = "".join(f"<tr><th>{_safe(label)}</th><td>{_safe(text)}</td></tr>" for label, text in facts)
        parts = [f"<b>{_safe(heading)}</b>", f'<table style="text-align:left">{rows}</table>']
        if values:
            head, *body = ("".join(f"<td>{_safe(cell)}</td>" for cell in row) for row in values)
            parts.append(f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>")
        return "\n".join(parts)


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedLadder(LadderResults):
    """A ladder: `.studies` by name, `.optima` and `.losses` as tables, `.laws`, and `.predicted(size)`."""

    @property
    def studies(self) -> dict[str, LoadedStudy]:
        """Each part that has begun, by the name of its study."""
        return {part: _loaded(part, self.runs) for part in parts(self.ladder.name, self.runs)}

    @property
    def optima(self) -> pd.DataFrame:
        """The best values of every rung, the check and the predictions; see `analysis.ladder.optima_table`."""
        return optima_table(self)

    @property
    def losses(self) -> pd.DataFrame:
        """The sides of the check with their regrets; see `analysis.ladder.regrets_table`."""
        return regrets_table(self)

    def __repr__(self) -> str:
        from hpstudy.report.ladder import ladder_screen

        return ladder_screen(self, 80)


def load(name: str, runs: str | Path = "runs") -> LoadedStudy | LoadedLadder:
    """A study's runs for pandas: `.trials`, `.steps`, `.verdict()`, `.confirmed`, `.noise`, `.halflives`, `.best`.

    `name` is a study in the folder `runs`, or "wandb:ENTITY/PROJECT/STUDY" for the same tables from W&B. Of a ladder
    it has `.rungs`, `.studies`, `.optima`, `.losses` and `.laws`.
    Raises UserError for an unknown study, MachineError if W&B's rows are not complete.
    """
    folder = Path(runs).absolute()  # a notebook's folder is rarely the one of a shell
    if name in begun_ladders(folder):
        found = begun_ladder(name, folder)
        return LoadedLadder(**{field.name: getattr(found, field.name) for field in fields(found)})
    return _loaded(name, folder)


def _loaded(name: str, runs: Path) -> LoadedStudy:
    results = load_results(name, runs)
    return LoadedStudy(frames=results.frames, store=results.store)


def _safe(text: str) -> str:
    return html.escape(text)


def _shown(results: StudyResults) -> tuple[str, list[tuple[str, str]], list[Row]]:
    """A heading, facts as (label, text), and a table of the values with its header; empty without values."""
    try:
        return _from_store(results) if results.store else _from_wandb(results)
    except HpstudyError as error:  # a notebook that shows a study must not stop at it
        return results.name, [("problem", str(error)), ("tables", WANDB_TABLES)], []


def _from_store(results: StudyResults) -> tuple[str, list[tuple[str, str]], list[Row]]:
    study, now, found = results.study, state(results), results.tuned
    name, (baseline, best) = opponent(study), measured(results)
    answer = in_short(results, now)
    facts = [
        ("state", f"{now}, {now.trials} of {now.planned} trials"),
        ("answer", f"{answer.badge}. {answer.sentence}"),
        (name, _side(study, baseline)),
        *([(found_name(results), _side(study, best))] if best else []),
        ("next", f"{now.advice}: `{now.command}`"),
        ("tables", TABLES),
        *(("problem", problem) for problem in results.frames.problems),
    ]
    changes = found.changes if found else ()
    values: list[Row] = [("", name, found_name(results), ""), *(change.cells for change in changes)] if changes else []
    return f"{study.name}: {study.question}", facts, values


def _side(study: Study, side: Measured) -> str:
    if not side.seeds:
        return "no loss is measured yet"
    speed = f", {side.tok_per_sec:,.0f} tokens/s" if SPEED in study.metrics and side.tok_per_sec else ""
    return f"val loss {side} nats{speed} ({side.run_id}, {_seeds(side.seeds)})"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _from_wandb(results: StudyResults) -> tuple[str, list[tuple[str, str]], list[Row]]:
    trials = results.trials
    phases = ", ".join(f"{count} {phase}" for phase, count in trials["phase"].value_counts().items() if count)
    complete = int((trials["outcome"] == Outcome.COMPLETE.value).sum())
    best = best_by_loss(trials).head(1)
    facts = [("source", "W&B, which holds no study file, so there is no verdict")]
    facts.append(("runs", f"{phases}; {complete} complete"))
    if len(best):
        row = best.iloc[0]
        facts.append(("best", f"val loss {row['val_loss']:.4f} nats ({row['run_id']}, {_seeds(1)})"))
    facts += [("tables", WANDB_TABLES), *(("problem", problem) for problem in results.frames.problems)]
    found: list[Row] = [(key, plain(value)) for key, value in results.best.items()]
    return results.name, facts, [("", "best"), *found] if found else []
