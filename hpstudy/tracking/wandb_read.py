"""A study's runs read back from Weights & Biases: headers, results and every row of their histories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.files import problem_of, unspelled
from hpstudy.hparams import COORDINATES, RULES, derived
from hpstudy.records import GLOSSARY, RunHeader, RunResult, run_order
from hpstudy.tracking.store import build_result, build_run
from hpstudy.tracking.wandb_settings import find_login

METRIC_NAMES = frozenset(metric.name for metric in GLOSSARY.values())
_FIGURES = tuple(f.name for f in fields(RunResult) if f.name not in ("outcome", "message"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedRun:
    """One run on W&B, with the run store's header and result."""

    header: RunHeader
    result: RunResult | None
    remote: Any  # wandb's public Run
    wandb_id: str
    damage: None = None  # nothing on W&B is checked by hash

    def rows(self) -> Iterator[dict[str, Any]]:
        """The history, one row per step. Raises MachineError if W&B returns fewer rows than it was sent."""
        name = f"W&B run {self.wandb_id} ({self.header.run.run_id})"
        with answered(name):
            rows = list(self.remote.scan_history(use_cache=False))
            sent = self.remote.lastHistoryStep  # steps count from 1 without gaps, so this is also their number
        expected = max(sent, self.result.steps if self.result else 0, 0)
        if len(rows) != expected:
            raise MachineError(
                f"{name}: {expected} history rows expected, but got {len(rows)}; wait until W&B has processed what was "
                f"sent (`hpstudy sync {self.header.study}` sends what is missing), then load again"
            )
        for row in rows:
            yield {key: unspelled(value) for key, value in row.items() if key in METRIC_NAMES}


def fetch_runs(path: str) -> tuple[list[FetchedRun], list[str]]:
    """The runs of the study "ENTITY/PROJECT/STUDY" in the run store's order, and a line on each that is left out.

    Histories are fetched by `rows`.

    Raises UserError for a path of another form, a missing login or an unknown study, MachineError if W&B fails.
    """
    import wandb  # here: it takes half a second

    entity, _, rest = path.partition("/")
    project, _, study = rest.partition("/")
    if not (entity and project and study):
        raise UserError(f'"wandb:{path}": must have the form wandb:ENTITY/PROJECT/STUDY')
    with answered(f'"wandb:{path}"'):
        has_login, host = find_login()
        if not has_login:
            raise UserError(f'"wandb:{path}": no login for {host}; set WANDB_API_KEY or run `wandb login`')
        found = list(wandb.Api().runs(f"{entity}/{project}", filters={"group": study}, lazy=False))
    runs: list[FetchedRun] = []
    left_out: list[str] = []
    for remote in found:
        if remote.config.get("study") != study:
            left_out.append(f'W&B run {remote.id}: is in the group "{study}" but no run of that study; left out')
            continue
        try:
            runs.append(_fetched(remote))
        except (KeyError, ValueError, TypeError) as error:
            left_out.append(f"W&B run {remote.id}: is not as hpstudy sent it ({problem_of(error)}); left out")
    runs.sort(key=lambda fetched: run_order(fetched.header.run))
    if not runs:
        more = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f'"wandb:{path}": {entity}/{project} has no runs of a study "{study}"{more}')
    twice = [run_id for run_id, count in Counter(run.header.run.run_id for run in runs).items() if count > 1]
    if twice:
        raise UserError(
            f'"wandb:{path}": each run must be there once, but {", ".join(twice)} are there more often, from another '
            "run store of the same study; delete or regroup the other runs on W&B"
        )
    return runs, left_out


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turns the exceptions of wandb, raised when its server fails or refuses, into a MachineError."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (wandb.errors.Error, WandbApiFailedError, ValueError, KeyError, TypeError) as error:
        raise MachineError(f"{what}: W&B did not answer as it should: {error}; try again") from error


def _fetched(remote: Any) -> FetchedRun:
    config = remote.config
    hparams = {key: config[key] for key in RULES if key in config}  # versions before may have had fewer
    tokens = config["budget_tokens"]
    run = build_run({"trial": None, **config, "tokens": tokens, "hparams": hparams})
    header = RunHeader(
        run=run,
        study=config["study"],
        wandb_id=config["wandb_id"],
        derived=derived(run.hparams) | {key: float(config[key]) for key in COORDINATES if key in config},
        num_params=config["num_params"],
        started=config["started"],
    )
    summary = {key: unspelled(remote.summary_metrics.get(f"result/{key}")) for key in ("outcome", *_FIGURES)}
    result = build_result(summary) if summary["outcome"] else None
    return FetchedRun(header=header, result=result, remote=remote, wandb_id=remote.id)
