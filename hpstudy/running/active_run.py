"""A run in training: what its worker reports on the way to the sinks, and what is known of earlier attempts."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.hparams import derived
from hpstudy.records import Outcome, Run, RunHeader, RunResult, StepRecord
from hpstudy.running.executors import AwakeClock
from hpstudy.running.interface import Progress
from hpstudy.running.messages import Saved
from hpstudy.running.summary import RunSummary
from hpstudy.spec import TrainerSpec
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink, new_wandb_id
from hpstudy.training.divergence import DivergenceWatch

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SHARE = 0.02  # of a run's time that its checkpoints may take


class ActiveRun:
    """One run between its worker and the sinks: first the run store, then W&B and the live view."""

    def __init__(
        self,
        header: RunHeader,
        store: RunStore,
        wandb: WandbSink,
        progress: Progress,
        *,
        clock: AwakeClock,
        deaths: int,
        furthest: int,
        exact: bool,
        checkpoint_seconds: float,
    ) -> None:
        """`exact`: steps trained again must have the same bits; otherwise steps without a checkpoint are discarded."""
        self.header = header
        self.run: Run = header.run
        self.deaths = deaths
        """Worker deaths since the last new step."""
        self.furthest = furthest
        """The last step that any attempt has recorded."""
        self.resumes_after: int | None = None
        """The step of its last checkpoint, 0 without one; None until its worker has said which it loaded."""
        self.trained = False
        """Whether its last step is recorded, though not its result."""
        self.saving = False
        """Whether its worker has an order to write a checkpoint; at most one at a time."""
        self._store, self._wandb, self._progress = store, wandb, progress
        self._summary = RunSummary()
        folder = store.folder(self.run.run_id)
        self._checkpoint = folder / CHECKPOINT
        self.part = folder / f"{CHECKPOINT}.{uuid.uuid4().hex[:8]}.part"
        """Where its worker writes. Its own: the worker of an earlier attempt may still write, beyond a cut network."""
        self._exact, self._checkpoint_seconds = exact, checkpoint_seconds
        self._clock, self._last_report, self._last_order = clock, clock.seconds(), time.monotonic()
        self._warned = False

    def begin(self) -> None:
        """Opens the run in all sinks. The intact steps of earlier attempts pass through W&B and the view again."""
        self._remove_parts()
        known = self._store.header(self.run.run_id)
        fresh = known is None or known.kind != self.header.kind  # what is there are remains, or of another kind
        if fresh:
            self._checkpoint.unlink(missing_ok=True)
        fresh = fresh or (not self._exact and self.checkpoint is None)
        self._writer = self._store.begin(self.header, fresh=fresh, exact=self._exact)
        self._wandb.begin(self.header)
        self._progress.start(self.run, self.recorded[-1].tokens if self.recorded else 0)
        if self._writer.cut:
            self._progress.say(
                f"{self.run.run_id}: {self._writer.cut} damaged bytes at the end of its steps were cut off"
            )
        for record in self.recorded:
            self._pass_on(record)
        self.resumes_after = None if self.checkpoint else 0
        self.furthest = max(self.furthest, len(self.recorded))

    @property
    def recorded(self) -> list[StepRecord]:
        """The intact steps of earlier attempts."""
        return self._writer.recorded

    @property
    def checkpoint(self) -> Path | None:
        """The file to resume from, if there is one."""
        return self._checkpoint if self._checkpoint.exists() else None

    def record(self, record: StepRecord) -> None:
        """Takes a step. Raises MachineError if it was recorded before with other figures."""
        if record.step > self.furthest:
            self.furthest, self.deaths = record.step, 0
        if self._writer.append(record):
            self._pass_on(record)

    def _pass_on(self, record: StepRecord) -> None:
        self._summary.add(record)
        self._wandb.log(self.run.run_id, record)
        self._progress.step(self.run, record)

    def silent_seconds(self) -> float:
        """Seconds since its worker's last report."""
        return self._clock.seconds() - self._last_report

    def on_report(self) -> float:
        """Notes a report of its worker and returns the seconds of silence before it."""
        silent = self.silent_seconds()
        self._last_report += silent
        return silent

    @property
    def left_at(self) -> str:
        """Where the run goes on if the study ends now."""
        if self.trained:
            return "its last step is recorded"
        match self.resumes_after:
            case None:
                return "resumes from its last checkpoint"
            case 0:
                return "no checkpoint yet; resumes from step 1"
            case step:
                return f"checkpoint written; resumes after step {step:,}"

    def begin_save(self, *, now: bool = False) -> bool:
        """Whether a checkpoint is due, once per interval or `now`. If so, the caller must order it."""
        due = now or time.monotonic() - self._last_order >= self._checkpoint_seconds
        if self.saving or not due:
            return False
        self._last_order, self.saving = time.monotonic(), True
        return True

    def on_saved(self, saved: Saved) -> None:
        """Makes a new checkpoint the current one, once its steps are durable."""
        self.saving = False
        if saved.problem:
            if not self._warned:
                self._progress.say(
                    f"{self.run.run_id}: no checkpoint could be written ({saved.problem}); training continues"
                )
            self._warned = True
            return
        self._writer.mark()
        with contextlib.suppress(FileNotFoundError):
            self.part.replace(self._checkpoint)
            self.resumes_after = saved.step
        if self._checkpoint_seconds:
            self._checkpoint_seconds = max(self._checkpoint_seconds, saved.seconds / CHECKPOINT_SHARE)

    def finish(self, outcome: Outcome, message: str) -> RunResult:
        """Writes the result and removes the checkpoint."""
        result = self._summary.result(outcome, message)
        self._writer.finish(result)
        self._remove_checkpoints()
        self._wandb.finish(self.run.run_id, result)
        self._progress.finish(self.run, result)
        return result

    def abandon(self) -> None:
        """Leaves the run unfinished."""
        self._writer.close()
        self._remove_parts()
        self._wandb.abandon(self.run.run_id)

    def restart_with(self, run: Run) -> None:
        """Leaves the run unfinished and without steps or checkpoint, to be trained as `run` from step 1."""
        self.abandon()
        self._remove_checkpoints()
        self._store.begin(replace(self.header, run=run), fresh=True).close()

    def _remove_checkpoints(self) -> None:
        self._remove_parts()
        with contextlib.suppress(OSError):
            self._checkpoint.unlink()

    def _remove_parts(self) -> None:
        """Removes the part files of this attempt and of all before it."""
        for path in self._checkpoint.parent.glob(f"{CHECKPOINT}.*part"):
            with contextlib.suppress(OSError):
                path.unlink()


def header_of(
    run: Run,
    store: RunStore,
    study: str,
    num_params: int,
    kind: str,
    coordinates: Mapping[str, float] = MappingProxyType({}),
) -> RunHeader:
    """The header of a run that begins now, or the one that it began with, unless that was on another `kind` of machine.

    Raises MachineError if the run began with other values. Its micro-batch may differ: it changes no loss, and becomes
    smaller when memory runs out.
    """
    known = store.header(run.run_id)
    before = _values(known.run, known.num_params) if known else {}
    now = _values(run, num_params) if known else {}
    if changed := [f"{key} was {before[key]!r} and is {now[key]!r}" for key in now if before[key] != now[key]]:
        raise MachineError(
            f"{store.folder(run.run_id)}: began with other values: {', '.join(changed)}; remove the folder to train "
            "the run again from step 1"
        )
    if known is not None:
        return known if known.kind in (None, kind) else replace(known, kind=kind)
    return RunHeader(
        run=run,
        study=study,
        wandb_id=new_wandb_id(study, run.run_id),
        derived={**derived(run.hparams), **coordinates},
        num_params=num_params,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
    )


def _values(run: Run, num_params: int) -> dict[str, Any]:
    """All that a run's numbers depend on, and what its header says of it besides."""
    values = asdict(run) | asdict(run.hparams) | {"num_params": num_params}
    return {key: value for key, value in values.items() if key not in ("hparams", "micro_batch")}


def recorded_outcome(run: Run, recorded: list[StepRecord], vocab_size: int, evals: int) -> Outcome | None:
    """How a run without a result ended, or None if its last step is not recorded.

    The records do not show whether a run was pruned.
    """
    watch = DivergenceWatch(run, vocab_size)
    if any(map(watch.diverged, recorded)):
        return Outcome.DIVERGED
    return Outcome.COMPLETE if recorded and recorded[-1].eval_index == evals else None


def with_smaller_micro_batch(run: Run, spec: TrainerSpec) -> Run | None:
    """The run at the next smaller divisor of a rank's batch, for less memory and the same loss; None below 1."""
    sequences = spec.rank_sequences(run.hparams.batch_tokens)
    size = max((size for size in range(1, run.hparams.micro_batch) if sequences % size == 0), default=None)
    return None if size is None else replace(run, hparams=replace(run.hparams, micro_batch=size))
