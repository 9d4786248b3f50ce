"""A study's run store, or its runs on W&B, as two tables: `trials` (a row per run) and `steps` (a row per step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from hpstudy.errors import UserError, did_you_mean
from hpstudy.files import RUNS, command
from hpstudy.hparams import COORDINATES, RULES
from hpstudy.records import GLOSSARY, PHASES, Outcome
from hpstudy.study.frozen import STUDY_VALUES
from hpstudy.tracking.store import RunStore, RunView, begun_studies
from hpstudy.tracking.wandb_read import FetchedRun, fetch_runs

if TYPE_CHECKING:
    import pyarrow as pa

WANDB_PREFIX = "wandb:"
DAMAGED = "damaged"  # the outcome of a run that was changed after it ended; it has no figures and no steps


def _described(doc: str, unit: str) -> str:
    return f"{doc} ({unit})" if unit else doc


_RUN_COLUMNS = {
    "run_id": "name of the run, and of its folder",
    "phase": "search, baseline, confirm, tuned-lr or batch",
    "trial": "Optuna's number; missing for runs that are not trials",
    "seed": "of initialisation and data order",
}

TRIALS_COLUMNS: dict[str, str] = {
    **_RUN_COLUMNS,
    "of": "the trial that a run of phase confirm repeats; missing for other phases",
    "fraction": "budget as a share of the study's full one; below 1 in the runs that measure a speed-up",
    **{key: _described(rule.doc, rule.unit) for key, rule in RULES.items()},
    "beta1_halflife_tokens": "tokens after which a gradient's weight in the gradient average has halved",
    "beta2_halflife_tokens": "tokens after which a gradient's weight in the squared-gradient average has halved",
    "decay_timescale_steps": "steps after which weight decay at the peak lr has shrunk a weight to 1/e",
    "outcome": f"{', '.join(Outcome)}; {DAMAGED} if the run was changed after it ended; missing while it is unfinished",
    "message": "why a run failed; missing for others",
    "steps": "optimizer updates done; missing while unfinished, like the figures after it",
    "tokens": "training tokens seen",
    "val_loss": "of the last evaluation (nats); NaN if not finite or not known",
    "best_val_loss": "lowest of all evaluations (nats)",
    "train_loss": "of the last step (nats)",
    "tok_per_sec": "median over the full batches after the first 5 of them, evaluation excluded (tokens/s)",
    "train_seconds": "sum of the steps' wall time (s)",
    "clipped_share": "share of the steps in which clipping scaled a gradient down",
    "budget_tokens": "tokens of the run's budget",
    "num_params": "parameters of the model",
    "wandb_id": "the run's id on W&B",
    "started": "when the run began (UTC)",
}
"""Column -> what it holds, for `StudyFrames.trials`: one row per run of any phase."""

COORDINATE_COLUMNS: dict[str, str] = {key: _described(rule.doc, rule.unit) for key, rule in COORDINATES.items()}
"""Column -> what it holds, of those that `StudyFrames.trials` has besides if the study searches these coordinates."""

STEPS_COLUMNS: dict[str, str] = {
    **_RUN_COLUMNS,
    **{m.name: _described(m.doc, m.unit) for m in GLOSSARY.values()},
}
"""Column -> what it holds, for `StudyFrames.steps`. The val/ columns are missing on steps without an evaluation."""

_TRIALS_DTYPES: dict[str, Any] = {
    **dict.fromkeys(TRIALS_COLUMNS, "float64"),
    **{key: "int64" for key, rule in RULES.items() if rule.kind is int},
    **{key: pd.CategoricalDtype(list(rule.choices)) for key, rule in RULES.items() if rule.choices},
    **dict.fromkeys(("seed", "budget_tokens", "num_params"), "int64"),
    **dict.fromkeys(("trial", "steps", "tokens"), "Int64"),
    "phase": pd.CategoricalDtype(list(PHASES)),
    "outcome": pd.CategoricalDtype([*(o.value for o in Outcome), DAMAGED]),
    "of": "str",
    "message": "str",
    "wandb_id": "str",
    "started": "datetime64[us, UTC]",
}

Source = RunView | FetchedRun
"""A run to read. Both have .header, .result, .wandb_id, .damage and .rows()."""


@dataclass(frozen=True, kw_only=True)
class StudyFrames:
    """The tables of one study. `trials` is read at once, `steps` on first use."""

    name: str
    trials: pd.DataFrame  # TRIALS_COLUMNS, and last the searched of COORDINATE_COLUMNS
    read_steps: Callable[..., pd.DataFrame]  # () -> `steps`; (metrics) -> `steps` with these and the run's columns
    runs: Path = RUNS  # the folder of run stores, for the commands that sentences name
    problems: tuple[str, ...] = ()  # what was left out of the tables, and the remedy

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per step of every run, in order of run and step; STEPS_COLUMNS."""
        return self.read_steps()


def load(name: str, runs: str | Path = "runs") -> StudyFrames:
    """The tables of the study `name` in the folder `runs`, or of "wandb:ENTITY/PROJECT/STUDY".

    Raises UserError for an unknown study, MachineError for a damaged file or an incomplete history on W&B.
    """
    sources: list[RunView] | list[FetchedRun]
    if name.startswith(WANDB_PREFIX):
        sources, strange = fetch_runs(name.removeprefix(WANDB_PREFIX))
        searched = {key for source in sources for key in source.header.derived}
    else:
        if name not in (known := begun_studies(Path(runs))):
            there = f"begun are {', '.join(known)}" if known else f"`{command('run', 'NAME', Path(runs))}` begins one"
            raise UserError(f'{runs}: no study "{name}" has begun in this folder{did_you_mean(name, known)}; {there}')
        store = RunStore(Path(runs) / name)
        sources = store.runs()
        searched = {key.split(".")[1] for key in store.read_json(STUDY_VALUES) or {} if key.startswith("search.")}
        strange = [
            f"{folder}: is not the run that its header names; left alone" for folder in store.strange_folders(sources)
        ]
    trials = _trials(sources, [key for key in COORDINATES if key in searched])
    heads = trials[list(_RUN_COLUMNS)]  # a copy, so that changes to `trials` do not reach it
    problems = [source.damage for source in sources if source.damage]
    return StudyFrames(
        name=name,
        trials=trials,
        read_steps=partial(_steps, heads, sources),
        runs=Path(runs),
        problems=(*problems, *strange),
    )


def _trials(sources: Sequence[Source], coordinates: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(map(_trial_row, sources), columns=[*TRIALS_COLUMNS, *coordinates])
    run_ids = pd.CategoricalDtype([s.header.run.run_id for s in sources])
    return frame.astype(_TRIALS_DTYPES | dict.fromkeys(coordinates, "float64") | {"run_id": run_ids})


def _trial_row(source: Source) -> dict[str, Any]:
    header, result, run = source.header, source.result, source.header.run
    end = {"outcome": DAMAGED} if source.damage else asdict(result) if result else {}
    return {
        **{key: getattr(run, key) for key in (*_RUN_COLUMNS, "of", "fraction")},
        **asdict(run.hparams),
        **header.derived,
        **end,
        "message": end.get("message") or None,
        "budget_tokens": run.tokens,
        "num_params": header.num_params,
        "wandb_id": source.wandb_id,
        "started": header.started,
    }


def _steps(heads: pd.DataFrame, sources: Sequence[Source], metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """The steps of all runs. `heads`: _RUN_COLUMNS, a row per run. `metrics`: the columns besides; None: all.

    Raises UserError for an unknown metric.
    """
    import pyarrow as pa  # here: `status` reads no steps

    from hpstudy.tracking.steps_table import STEP_HINTS, columns_of

    for name in metrics or ():
        if name not in STEP_HINTS:
            raise UserError(f'no metric "{name}"{did_you_mean(name, STEP_HINTS)}; known are {", ".join(STEP_HINTS)}')
    schema = columns_of(metrics)
    with ThreadPoolExecutor() as pool:  # pyarrow parses outside the GIL
        tables = list(pool.map(partial(_steps_table, schema=schema), sources))
    counts = [len(table) for table in tables]
    table = pa.concat_tables([schema.empty_table(), *tables])
    del tables
    frame = heads.take(np.repeat(np.arange(len(counts)), counts)).reset_index(drop=True)
    for name in schema.names:  # column by column, so that there is never a second copy of the table
        missing = {pa.int64(): pd.Int64Dtype()} if type(None) in get_args(STEP_HINTS[name]) else {}
        frame[name] = table.column(0).to_pandas(types_mapper=missing.get)
        table = table.remove_column(0)
    return frame


def _steps_table(source: Source, schema: pa.Schema) -> pa.Table:
    from hpstudy.tracking.steps_table import from_lines, from_rows, kept_table

    if source.damage:
        return schema.empty_table()
    if isinstance(source, RunView):
        table = kept_table(source.folder, schema)
        if table is None and source.steps_path.exists():
            table = from_lines(source.steps_path.read_bytes(), schema)
        if table is not None:
            source.expect(len(table))
            return table
    return from_rows(source.rows(), schema)
