"""What W&B's server has of one run, read back before the run counts as delivered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.files import unspelled
from hpstudy.records import BROKEN, RunResult, StepRecord, as_row
from hpstudy.tracking.wandb_read import METRIC_NAMES, answered
from hpstudy.tracking.wandb_settings import find_login

ASK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the server has of a run: rows, the last step among them (0 without any), outcome and state."""

    rows: int
    last_step: int
    outcome: str | None
    state: str
    remote: Any  # wandb's public Run

    def lacks(self, result: RunResult) -> str:
        """What is missing for a finished run, or "". Steps count from 1 without gaps."""
        if self.rows != result.steps or self.last_step != result.steps:
            return f"W&B has {self.rows} of {result.steps} rows"
        if self.outcome != result.outcome.value:
            return "W&B has no summary with its result"
        state = "failed" if result.outcome in BROKEN else "finished"
        return f'is "{self.state}" on W&B and not "{state}"' if self.state != state else ""

    def continues(self, result: RunResult) -> bool:
        """Whether sending what follows the last step completes the run. Rows missing before it cannot be sent again."""
        return self.rows == self.last_step <= result.steps

    def set_aside(self, study: str) -> None:
        """Moves the run out of the study's group, since another run takes its place."""
        with answered(f"W&B run {self.remote.id}"):
            self.remote.group = f"{study} (incomplete)"
            self.remote.update()


def read_back(path: str, patience: float, records: Iterable[StepRecord] | None = None) -> Receipt | None:
    """What the server has of the run at "ENTITY/PROJECT/ID", None if it has no such run.

    With `records` the rows that equal them are counted, instead of asking for the number of rows. Raises MachineError
    if W&B fails.
    """
    import wandb
    from wandb.apis.public.runs import RunNotFoundError

    if not find_login()[0]:  # wandb.Api would ask for a key
        raise MachineError("W&B: no key or login")
    with answered(f"W&B run {path}"):
        try:
            remote = wandb.Api(timeout=max(1, round(patience))).run(path)
        except (RunNotFoundError, wandb.errors.CommError) as error:
            if isinstance(getattr(error, "exc", error), RunNotFoundError):  # wandb wraps it, unless it debugs
                return None
            raise
        last = max(0, remote.lastHistoryStep or 0)
        if records is None:
            rows = remote.historyLineCount or 0
        else:
            expected = [_comparable(as_row(record)) for record in records]
            found = [_comparable(row) for row in remote.scan_history(use_cache=False)]
            rows = sum(row == other for row, other in zip(expected, found, strict=False))
            rows += max(0, len(found) - len(expected))
        outcome = remote.summary_metrics.get("result/outcome")
        return Receipt(rows=int(rows), last_step=int(last), outcome=outcome, state=str(remote.state), remote=remote)


def _comparable(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's own values; by repr, so that NaN equals NaN."""
    own = {key: unspelled(value) for key, value in row.items() if key in METRIC_NAMES}
    return {key: repr(float(value)) for key, value in own.items() if value is not None}


def missing(path: str, result: RunResult, patience: float) -> str:
    """What the server still lacks of a finished run after `patience` seconds, or "" as soon as it has all.

    W&B answers before it has stored what it was sent.
    """
    until = time.monotonic() + patience
    while True:
        try:
            receipt = read_back(path, patience)
            lacks = receipt.lacks(result) if receipt else "W&B has no such run"
        except MachineError as error:
            lacks = str(error)
        if not lacks or time.monotonic() > until:
            return lacks
        time.sleep(ASK_AGAIN_SECONDS)
