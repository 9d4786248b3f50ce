"""One recorded run trained again in a fresh process, and what differs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpstudy.errors import MachineError, UserError, did_you_mean
from hpstudy.records import Run, StepRecord, changes
from hpstudy.running.cost import welcome
from hpstudy.running.environment import differences
from hpstudy.running.workers import Finished, Recorded, Setup, Train, Worker
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore, RunView

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # nats of train or validation loss, between machines or packs, by precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a run went again."""

    run_id: str
    steps: int  # compared
    first: str | None  # the first difference, "step 12: train/loss 3.1 where 3.2 was recorded"
    largest: float  # difference of a train or validation loss over all steps, nats
    tolerance: float  # nats; between machines
    elsewhere: tuple[str, ...]  # what is not as it was when the run was recorded

    @property
    def good(self) -> bool:
        """Bitwise the same or, where something else differs too, within the tolerance."""
        return self.first is None or (bool(self.elsewhere) and self.largest <= self.tolerance)


def replay(study: Study, store: RunStore, run_id: str, device: str) -> Replay:
    """Trains the run's recorded steps again and compares every figure but times.

    Raises UserError for a run that is not there, MachineError when it cannot be trained here.
    """
    views = {view.run_id: view for view in store.runs()}
    if run_id not in views:
        raise UserError(f"{store.root}: there is no run {run_id!r}{did_you_mean(run_id, views)}")
    recorded = list(views[run_id].records())
    if not recorded:
        raise UserError(f"{store.root}: {run_id} has no step to compare with")
    frozen = store.read_json("environment.json") or {}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Setup(spec=study.spec, device=device, base=Path.cwd()), Path(folder) / "worker.log")
        try:
            environment = welcome(worker).environment
            elsewhere = differences(frozen, environment)
            if study.budget.pack != 1:
                elsewhere.append("it may have been trained in a pack, and is trained alone now")
            first, largest = _compare(recorded, _again(worker, views[run_id], len(recorded)))
        finally:
            worker.stop()
    return Replay(
        run_id=run_id,
        steps=len(recorded),
        first=first,
        largest=largest,
        tolerance=TOLERANCE[environment["precision"]],
        elsewhere=tuple(elsewhere),
    )


def _again(worker: Worker, view: RunView, num_steps: int) -> Iterator[StepRecord]:
    """The run's first steps, as the worker trains them now."""
    run: Run = view.header.run
    worker.send(Train(runs=(run,), judged=False))
    count = 0
    while count < num_steps:
        match worker.receive():
            case Recorded(record=record):
                count += 1
                yield record
            case Finished(outcome=outcome, message=message):
                raise MachineError(
                    f"{run.run_id}: ended {outcome.value} after step {count}: {message or 'no reason given'}"
                )
            case None:
                raise MachineError(f"{run.run_id}: its worker died after step {count}: {worker.last_words()}")
            case report:
                raise AssertionError(f"unexpected report {report!r}")


def _compare(recorded: Iterable[StepRecord], again: Iterable[StepRecord]) -> tuple[str | None, float]:
    """The first difference, and the largest one of a loss."""
    first: str | None = None
    largest = 0.0
    for old, new in zip(recorded, again, strict=True):
        if not (different := changes(old, new)):
            continue
        first = first or f"step {old.step}: {different}"
        pairs = [(old.loss, new.loss), (old.val_loss, new.val_loss)]
        gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        largest = max([largest, *(math.inf if math.isnan(gap) else gap for gap in gaps)])
    return first, largest
