"""A study's runs read back from Weights & Biases: headers, results, and every row of their history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import GPT3, RULES, HParams, derived
from hpstudy.records import GLOSSARY, Outcome, Run, RunHeader, RunResult
from hpstudy.tracking.store import PHASES, restored

_METRICS = frozenset(metric.name for metric in GLOSSARY.values())
_DERIVED = tuple(derived(GPT3))
_FIGURES = (
    "steps",
    "tokens",
    "val_loss",
    "best_val_loss",
    "train_loss",
    "tok_per_sec",
    "train_seconds",
    "clipped_share",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedRun:
    """One run on W&B, in the words of the run store."""

    header: RunHeader
    result: RunResult | None
    remote: Any  # wandb's public Run

    def rows(self) -> Iterator[dict[str, Any]]:
        """The history, one row per step; raises MachineError when W&B returns fewer rows than it holds."""
        logged = self.remote.lastHistoryStep  # steps count from 1 and each is logged once, so this is also their number
        expected = max(logged, self.result.steps if self.result else 0)
        count = 0
        for row in self.remote.scan_history(use_cache=False):
            count += 1
            yield {key: restored(value) for key, value in row.items() if key in _METRICS}
        if count != expected:
            raise MachineError(
                f"W&B run {self.header.wandb_id} ({self.header.run.run_id}): {expected} history rows expected, "
                f"but got {count}; wait until W&B has taken in all of them (`hpstudy sync {self.header.study}` sends "
                "offline runs), then load again"
            )


def fetch_runs(path: str) -> list[FetchedRun]:
    """The runs of the study "ENTITY/PROJECT/STUDY" in the run store's order, without their histories yet.

    Raises UserError for a path of another form, a missing login or an unknown study, MachineError when W&B fails.
    """
    import wandb  # here, because it takes half a second
    from wandb.sdk.lib import wbauth
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    entity, _, rest = path.partition("/")
    project, _, study = rest.partition("/")
    if not (entity and project and study):
        raise UserError(f'"wandb:{path}": must have the form wandb:ENTITY/PROJECT/STUDY')
    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url  # silent, or it greets on stderr
    try:
        if not wbauth.authenticate_session(host=host, source="hpstudy", prompt=False, update_session=False):
            raise UserError(f'"wandb:{path}": no login for {host}; set WANDB_API_KEY or run `wandb login`')
        found = list(wandb.Api().runs(f"{entity}/{project}", filters={"group": study}, lazy=False))
    except (wandb.errors.Error, WandbApiFailedError, ValueError) as error:
        raise MachineError(f'"wandb:{path}": {host} did not list its runs: {error}; try again') from error
    runs = sorted((_fetched(remote) for remote in found if remote.config.get("study") == study), key=_order)
    if not runs:
        raise UserError(f'"wandb:{path}": {entity}/{project} has no runs of a study "{study}"')
    twice = [run_id for run_id, count in Counter(run.header.run.run_id for run in runs).items() if count > 1]
    if twice:
        raise UserError(
            f'"wandb:{path}": a run must be there once, but {", ".join(twice)} are there more often, from another '
            "run store of the same study; delete or regroup the other runs on W&B"
        )
    return runs


def _order(run: FetchedRun) -> tuple[int, int, int]:
    planned = run.header.run
    return PHASES.index(planned.phase), -1 if planned.trial is None else planned.trial, planned.seed


def _fetched(remote: Any) -> FetchedRun:
    config = remote.config
    run = Run(
        run_id=config["run_id"],
        phase=config["phase"],
        trial=config.get("trial"),
        seed=config["seed"],
        tokens=config["budget_tokens"],
        hparams=HParams(**{key: config[key] for key in RULES}),
    )
    header = RunHeader(
        run=run,
        study=config["study"],
        wandb_id=config["wandb_id"],
        derived={key: float(config[key]) for key in _DERIVED},
        num_params=config["num_params"],
        started=config["started"],
    )
    summary = {key: restored(remote.summary_metrics.get(f"result/{key}")) for key in ("outcome", *_FIGURES)}
    outcome = summary.pop("outcome")
    return FetchedRun(
        header=header, result=RunResult(outcome=Outcome(outcome), **summary) if outcome else None, remote=remote
    )
