"""A study's runs on Weights & Biases: how one is opened, the rows of a finished one, and its end.

wandb is imported inside functions: it takes a second, and the command line must answer at once.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpstudy.errors import MachineError
from hpstudy.files import json_object, read_json, spelled
from hpstudy.records import BASELINE, BROKEN, GLOSSARY, Run, RunHeader, RunResult, as_row
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunView
from hpstudy.tracking.wandb_settings import Mode

if TYPE_CHECKING:
    import wandb

LAST = frozenset(GLOSSARY[key].name for key in ("loss", "val_loss", "tokens", "tok_per_sec"))
"""Metrics whose last value the table of runs shows while a run trains."""
RECORDED = {"precision": "precision", "device": "device", "device_name": "device_name", "git_commit": "commit"}
"""Key of the environment -> entry of a run's config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbRuns:
    """Where the runs of a study go on W&B, and what they are called there."""

    project: str
    entity: str | None
    directory: Path  # the study's run folder
    extra: dict[str, Any]  # joins each config
    baseline: str  # the id of the baseline's run on the search's seed
    rules: dict[str, str]  # run id -> the published rule that proposed the run
    patience: float  # seconds per answer of W&B

    def open(self, header: RunHeader, mode: Mode, *, trains: bool) -> wandb.Run:
        """Opens the run under the header's `wandb_id`. If it trains now, W&B samples the machine's load beside it."""
        import wandb

        for fragment in (self.directory / "wandb").glob(f"*run-*-{header.wandb_id}*"):
            # of an interrupted attempt; its rows are logged again. Its process may just be ending: hence twice
            shutil.rmtree(fragment, ignore_errors=True)
            if fragment.exists():
                shutil.rmtree(fragment)
        wandb.setup(wandb.Settings(silent=True))  # otherwise init greets on stderr
        run = wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            dir=str(self.directory),
            id=header.wandb_id,
            name=f"{header.study}/{header.run.run_id}",
            group=header.study,
            job_type=header.run.phase,
            tags=self._tags(header.run),
            notes=self.extra.get("question"),
            config=spelled(self.extra | self._environment() | _config(header) | self._rule(header.run)),
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                x_disable_stats=not trains,
                x_save_requirements=False,
                init_timeout=self.patience,
                finish_timeout=self.patience,
                finish_timeout_raises=True,
            ),
        )
        given, asked = [run.project, run.id], [self.project, header.wandb_id]
        if self.entity and mode == "online":
            given, asked = [run.entity, *given], [self.entity, *asked]
        if given != asked:
            run.finish(exit_code=1)
            raise MachineError(f"{header.run.run_id} was to go to {'/'.join(asked)}, but W&B opened {'/'.join(given)}")
        for metric in GLOSSARY.values():  # no automatic minimum: a single NaN would spoil it for good
            step_metric = None if metric.name == "tokens" else "tokens"
            run.define_metric(metric.name, step_metric=step_metric, summary="last" if metric.name in LAST else "none")
        return run

    def _tags(self, run: Run) -> list[str]:
        """The phase, "baseline" for runs of its values, and a rung's ladder. The outcome joins them at the end."""
        is_baseline = run.run_id == self.baseline or run.candidate == BASELINE
        ladder = [f"ladder:{self.extra['ladder']}"] if "ladder" in self.extra else []
        return list(dict.fromkeys([run.phase, *([BASELINE] if is_baseline else []), *ladder]))

    def _rule(self, run: Run) -> dict[str, str]:
        """The published rule that proposed the run, if one did."""
        return {"rule": self.rules[run.run_id]} if run.run_id in self.rules else {}

    def _environment(self) -> dict[str, Any]:
        """The precision, device and commit that the study began with, as far as they are recorded."""
        try:
            found: dict[str, Any] = read_json(self.directory / ENVIRONMENT, json_object) or {}
        except MachineError:  # the driver refuses a damaged file itself
            return {}
        return {name: found[key] for key, name in RECORDED.items() if key in found}


def finished_rows(view: RunView) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, row) of each step of a finished run, with the time at which it would have ended without an interruption.

    The run store has the time of the start alone; without one, rows get the time of now.
    """
    when = _began(view.header)
    for record in view.records():
        row = as_row(record)
        if when is not None:
            when += record.step_seconds + (record.eval_seconds or 0.0)
            row["_timestamp"] = when
        yield record.step, row


def end(run: wandb.Run, result: RunResult) -> None:
    """Writes the summary, and closes the run."""
    figures = dataclasses.asdict(result) | {"outcome": result.outcome.value}  # wandb would write an enum's name
    run.summary.update({f"result/{key}": spelled(v) for key, v in figures.items() if v not in (None, "")})
    run.tags = (*(run.tags or ()), result.outcome.value)
    run.finish(exit_code=int(result.outcome in BROKEN))  # red on W&B


def in_short(error: Exception) -> str:
    """An error's kind and first line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]


def wandb_process() -> Any:
    """The process that wandb has started, as a Popen. None without one, or if wandb has renamed its private parts."""
    import wandb

    try:
        return wandb.setup()._connection._proc._process  # type: ignore[union-attr]
    except AttributeError:
        return None


def _began(header: RunHeader) -> float | None:
    """When the run began, in seconds since 1970; None if its header says it in another form."""
    try:
        return datetime.fromisoformat(header.started).timestamp()
    except ValueError:
        return None


def _config(header: RunHeader) -> dict[str, Any]:
    run = header.run
    return {
        **dataclasses.asdict(run.hparams),
        **header.derived,
        "study": header.study,
        "run_id": run.run_id,
        "trial": run.trial,
        "seed": run.seed,
        "phase": run.phase,
        "of": run.of,
        "candidate": run.candidate,
        "fraction": run.fraction,
        "budget_tokens": run.tokens,
        "num_params": header.num_params,
        "started": header.started,
        "wandb_id": header.wandb_id,
    }
