"""Trains one recorded run again in a fresh process and compares it with its record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hpstudy.errors import MachineError, UserError, did_you_mean
from hpstudy.records import Run, StepRecord, step_differences
from hpstudy.running.environment import code_changes, differences, inexact
from hpstudy.running.executors import Executor, Worker, wait_until_ready
from hpstudy.running.messages import Finished, Recorded, Setup, Train
from hpstudy.running.summary import RunSummary
from hpstudy.study import Study
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore, RunView

REMEDY = "try `hpstudy doctor`, or replay it where it was trained"
FIGURES = ("steps", "tokens", "val_loss", "best_val_loss", "train_loss", "clipped_share")  # of a result
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # nats by which a loss may differ if the numbers need not repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A run trained again, beside its record."""

    run_id: str
    steps: int  # compared
    first: str | None  # the first difference, "step 12: train/loss 3.1 where 3.2 was recorded"
    largest: float  # largest difference of a train or validation loss, nats
    tolerance: float  # nats
    changed: tuple[str, ...]  # what the numbers depend on and has changed since the run was recorded
    damage: str | None  # what was changed in the run after it ended

    @property
    def good(self) -> bool:
        """Whether the run is as it ended and repeats: bitwise or, if something has changed, within the tolerance."""
        repeats = self.first is None or (bool(self.changed) and self.largest <= self.tolerance)
        return repeats and self.damage is None


def replay(study: Study, store: RunStore, run_id: str, device: str, executor: Executor) -> Replay:
    """Trains the run's recorded steps again and compares every figure except times.

    Raises UserError for an unknown run, MachineError if it cannot be trained here.
    """
    views = {view.run_id: view for view in store.runs()}
    if run_id not in views:
        raise UserError(f"{store.root}: there is no run {run_id!r}{did_you_mean(run_id, views)}")
    recorded = list(views[run_id].records())
    if not recorded:
        raise UserError(f"{store.root}: {run_id} has no step to compare with")
    frozen = store.read_json(ENVIRONMENT) or {}
    worker = executor.start(Setup(spec=study.spec, device=device, base=Path.cwd()), 0)
    try:
        environment = wait_until_ready(worker).environment
        changed = differences(frozen, environment) + code_changes(frozen, environment) + inexact(study, environment)
        first, largest = _compare(recorded, _again(worker, views[run_id], len(recorded)))
    finally:
        executor.stop([worker])
    return Replay(
        run_id=run_id,
        steps=len(recorded),
        first=first,
        largest=largest,
        tolerance=TOLERANCE[environment["precision"]],
        changed=tuple(changed),
        damage=views[run_id].damage or _result_differs(views[run_id], recorded),
    )


def _again(worker: Worker, view: RunView, num_steps: int) -> Iterator[StepRecord]:
    """The run's first steps, trained now."""
    run: Run = view.header.run
    worker.send(Train(run=run, awaits_decision=False))
    count = 0
    while count < num_steps:
        match worker.receive():
            case Recorded(record=record):
                count += 1
                yield record
            case Finished(outcome=outcome, message=message):
                raise MachineError(
                    f"{run.run_id}: ended {outcome.value} after step {count}: {message or 'no reason given'}; {REMEDY}"
                )
            case None:
                raise MachineError(
                    f"{run.run_id}: its worker died after step {count}: {worker.last_words().last_line}; {REMEDY}"
                )
            case report:
                raise AssertionError(f"unexpected report {report!r}")


def _result_differs(view: RunView, recorded: Iterable[StepRecord]) -> str | None:
    """Which figures of a run's result its steps do not give."""
    if view.result is None:
        return None
    summary = RunSummary()
    for record in recorded:
        summary.add(record)
    given, noted = asdict(summary.result(view.result.outcome)), asdict(view.result)
    wrong = [
        f"{key} is {noted[key]} where its steps give {given[key]}"
        for key in FIGURES
        if repr(given[key]) != repr(noted[key])
    ]
    return f"{view.folder}: {', '.join(wrong)}" if wrong else None


def _compare(recorded: Iterable[StepRecord], again: Iterable[StepRecord]) -> tuple[str | None, float]:
    """(the first difference, the largest difference of a loss)."""
    first: str | None = None
    largest = 0.0
    for old, new in zip(recorded, again, strict=True):
        if not (different := step_differences(old, new)):
            continue
        first = first or f"step {old.step}: {different}"
        pairs = [(old.loss, new.loss), (old.val_loss, new.val_loss)]
        gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        largest = max([largest, *(math.inf if math.isnan(gap) else gap for gap in gaps)])
    return first, largest
