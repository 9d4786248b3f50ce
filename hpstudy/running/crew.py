"""The workers of a study: started, kept busy, watched, and replaced when they die."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import derived
from hpstudy.records import Outcome, Run, RunHeader
from hpstudy.running.awake import AwakeClock
from hpstudy.running.cost import START_SECONDS, welcome
from hpstudy.running.environment import describe, refuse_if_changed
from hpstudy.running.flights import Flight, ended_before, with_smaller_micro_batch
from hpstudy.running.interface import Interrupted, Options, Progress, StopRequest
from hpstudy.running.oom_killer import oom_kills
from hpstudy.running.packing import take_pack
from hpstudy.running.sources import Source
from hpstudy.running.workers import (
    LOOK_SECONDS,
    Finished,
    Ready,
    Recorded,
    Refused,
    Resumed,
    Save,
    Saved,
    Setup,
    Train,
    Word,
    Worker,
    stop_all,
)
from hpstudy.study import Study, question_sha256
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink, new_wandb_id

ATTEMPTS = 3  # workers that may die under a run with no new step between, or before they are ready, in a row
HUNG_SECONDS = 600.0  # of silence at least, unless the study says otherwise, before a worker counts as hung
HUNG_STEPS = 50  # and as many times the longest silence that there has been between two records
LAST_SAVE_SECONDS = 5.0  # for the checkpoints of a study that is stopped


class Crew:
    """The workers and the runs that they train."""

    def __init__(
        self,
        study: Study,
        store: RunStore,
        wandb: WandbSink,
        options: Options,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self._study, self._store, self._wandb = study, store, wandb
        self._options, self._progress, self._stop = options, progress, stop
        self._flights: dict[Worker, dict[str, Flight]] = {}  # of busy workers, by run id
        self._waiting: deque[Run] = deque()  # for an idle worker
        self._environment: dict[str, Any] | None = None
        self._num_params = 0
        self._ready: set[Worker] = set()
        self._clock = AwakeClock()
        self._slowest = 0.0  # seconds before a record of any run in which nothing was heard of it
        self._stillborn = 0  # workers that died before they were ready, in a row
        self._oom_kills = oom_kills(os.getpid())
        self._pack, self._packed = 1, False  # runs that train as one; whether each, even a single one, trains as a pack
        self._workers = [self._start(0)]

    @property
    def first(self) -> Worker:
        """The worker that measures; waits until it is ready."""
        if self._workers[0] not in self._ready:
            self.welcome_first()
        return self._workers[0]

    def welcome_first(self) -> dict[str, Any]:
        """Waits for the first worker and returns its environment."""
        worker = self._workers[0]
        return self._welcome(worker, welcome(worker, self.look))

    def restart_first(self) -> None:
        """A fresh process for the first worker, which frees what it held or was killed for."""
        self._workers[0].stop()
        self._workers[0] = self._start(0)
        self.welcome_first()

    def grow(self, count: int) -> None:
        """Starts workers until there are `count`."""
        self._workers += [self._start(index) for index in range(len(self._workers), count)]

    def train_as_one(self, size: int) -> None:
        """Has up to so many runs train as one.

        Where there are several, a run that finds no other trains as a pack of one: which runs are waiting together is
        a matter of timing, and in the last bits a pack differs from a run alone, but not from another pack.
        """
        self._pack, self._packed = size, size > 1

    def look(self) -> None:
        """Raises Interrupted when the study shall stop."""
        if self._stop.requested:
            raise Interrupted("stopped")

    def train(self, source: Source) -> None:
        """Keeps every worker busy until the source has no run left and none is in the air.

        When the study is stopped, runs in the air leave a checkpoint.
        """
        try:
            while True:
                self._assign(source)
                if not self._flights:
                    return
                for worker in self._reporting():
                    self._hear(worker, source)
                self._order_checkpoints()
        except Interrupted:
            self._save_all(source)
            raise

    def close(self) -> None:
        """Ends the workers and leaves runs in the air without a result."""
        try:
            for flights in self._flights.values():
                for flight in flights.values():
                    flight.abandon()  # first, so that W&B takes it in while the workers end
        finally:
            stop_all(self._workers)

    def _assign(self, source: Source) -> None:
        idle = [worker for worker in self._workers if worker not in self._flights]
        while idle and self._fetch(source):
            runs = take_pack(self._waiting, self._pack, len(idle))
            if self._begin(idle[0], runs, source):
                del idle[0]

    def _fetch(self, source: Source) -> bool:
        """Takes what the source has; whether a run waits. One that has a result is ended, which may bring another."""
        while (run := source.next()) is not None:
            result = self._store.result(run.run_id)  # of an earlier session
            if result is None:
                self._waiting.append(run)
                continue
            for record in self._store.view(run.run_id).records():
                if record.evaluated:
                    source.heard(run, record)  # if its line was lost
            source.ended(run, result)
        return bool(self._waiting)

    def _begin(
        self, worker: Worker, runs: Sequence[Run], source: Source, *, deaths: int = 0, furthest: int = 0
    ) -> bool:
        """Writes the headers, tells the sinks and orders the training; False where all had ended before."""
        flights: dict[str, Flight] = {}
        for run in runs:
            flight = self._open(run, deaths, furthest)
            for record in flight.recorded:
                if record.evaluated:
                    source.heard(flight.run, record)
            if (outcome := self._ended_before(flight, source)) is not None:
                source.ended(flight.run, flight.finish(outcome, ""))
            else:
                flights[flight.run.run_id] = flight
        if flights:
            self._flights[worker] = flights
            for flight in flights.values():
                flight.shared = len(flights) > 1
            alone = next(iter(flights.values())) if len(flights) == 1 else None
            worker.send(
                Train(
                    runs=tuple(flight.run for flight in flights.values()),
                    judged=source.judged,
                    packed=self._packed,
                    checkpoint=alone.checkpoint if alone else None,
                    recorded=len(alone.recorded) if alone else 0,
                )
            )
        return bool(flights)

    def _open(self, run: Run, deaths: int, furthest: int) -> Flight:
        """A run that is about to be trained; one begun before keeps its header."""
        known = self._store.header(run.run_id)
        if known and replace(known.run.hparams, micro_batch=run.hparams.micro_batch) != run.hparams:
            raise MachineError(
                f"{self._store.folder(run.run_id)}: began with {known.run.hparams}, and is now to have {run.hparams}; "
                "remove the folder to train the run anew"
            )
        header = known or RunHeader(
            run=run,
            study=self._study.name,
            wandb_id=new_wandb_id(self._study.name, run.run_id),
            derived=derived(run.hparams),
            num_params=self._num_params,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Flight(
            header,
            self._store,
            self._wandb,
            self._progress,
            clock=self._clock,
            deaths=deaths,
            furthest=furthest,
            alone=not self._packed,
            checkpoint_seconds=self._options.checkpoint_seconds,
        )

    def _ended_before(self, flight: Flight, source: Source) -> Outcome | None:
        evals = self._study.spec.evals
        outcome = ended_before(flight.run, flight.recorded, self._study.vocab_size, evals)
        last = flight.recorded[-1] if flight.recorded else None
        if outcome is None and last and last.evaluated and source.judged and source.should_stop(flight.run, last):
            return Outcome.PRUNED
        return outcome

    def _reporting(self) -> list[Worker]:
        """Waits for workers that have something to say; ends those that have been silent for too long."""
        while True:
            self.look()
            heard = self._heard_within(LOOK_SECONDS)
            limit = self._study.budget.hang_seconds or max(HUNG_SECONDS, HUNG_STEPS * self._slowest)
            for worker in self._flights.keys() - heard:
                flights = self._flights[worker]
                silent = min(flight.silent_seconds() for flight in flights.values())
                if silent > (limit if worker in self._ready else max(limit, START_SECONDS)):
                    self._progress.say(f"{', '.join(flights)}: nothing heard for {silent:.0f} s; its worker is ended")
                    worker.kill()
                    heard.append(worker)  # of its death
            if heard:
                return heard

    def _heard_within(self, seconds: float) -> list[Worker]:
        by_connection = {worker.connection: worker for worker in self._workers}
        return [by_connection[connection] for connection in wait(list(by_connection), timeout=seconds)]  # type: ignore[index]

    def _hear(self, worker: Worker, source: Source) -> None:
        report = worker.receive(self.look)
        flights = self._flights.get(worker, {})
        silent = max((flight.heard() for flight in flights.values()), default=0.0)
        match report:
            case Ready():  # of a worker that was started later
                self._welcome(worker, report)
            case Refused(problems=problems, by_user=by_user):
                raise UserError(problems) if by_user else MachineError("; ".join(problems))
            case Resumed(run_id=run_id, step=step, problem=problem):
                self._progress.say(
                    f"{run_id}: its checkpoint cannot be used ({problem}); it trains again from step 1"
                    if problem
                    else f"{run_id}: goes on after step {step}"
                )
            case Recorded(run_id=run_id, record=record):
                flight = flights[run_id]
                flight.record(record)
                self._slowest = max(self._slowest, silent)
                if record.evaluated:
                    source.heard(flight.run, record)
                    if source.judged and record.eval_index != self._study.spec.evals:
                        worker.send(Word(run_id=run_id, stop=source.should_stop(flight.run, record)))
            case Saved(run_id=run_id, seconds=seconds, problem=problem):
                flights[run_id].checkpointed(seconds, problem)
            case Finished(run_ids=run_ids, outcome=outcome, message=message):
                self._end(worker, [flights[run_id] for run_id in run_ids], outcome, message, source)
            case None:
                self._replace(worker, source)
            case _:
                raise AssertionError(f"unexpected report {report!r}")

    def _end(self, worker: Worker, ended: Sequence[Flight], outcome: Outcome, message: str, source: Source) -> None:
        """Takes runs out of the air, each with a result unless it is to be tried with less memory.

        What a pack has no memory for may well fit alone: each is then tried so.
        """
        for flight in ended:
            del self._flights[worker][flight.run.run_id]
        if not self._flights[worker]:
            del self._flights[worker]
        if outcome is Outcome.OUT_OF_MEMORY and ended[0].shared:
            self._train_apart(ended, "out of memory as one")
            return
        for flight in ended:
            if outcome is Outcome.OUT_OF_MEMORY and (smaller := self._with_less_memory(flight)) is not None:
                self._waiting.appendleft(smaller)
            else:
                source.ended(flight.run, flight.finish(outcome, message))

    def _train_apart(self, flights: Sequence[Flight], why: str) -> None:
        """Puts runs of a pack back, one at a time from here, so that each fails for itself alone."""
        self._pack = 1
        self._progress.say(f"{', '.join(flight.run.run_id for flight in flights)}: {why}; tried again one at a time")
        for flight in flights:
            flight.abandon()
        self._waiting.extendleft(flight.run for flight in reversed(flights))

    def _with_less_memory(self, flight: Flight) -> Run | None:
        """The run at a smaller micro-batch, where the study fixes it and allows that."""
        run = flight.run
        if not self._study.budget.smaller_micro_batch or "micro_batch" in self._study.space:
            return None
        if (smaller := with_smaller_micro_batch(run, self._study.spec.context)) is None:
            return None
        size = smaller.hparams.micro_batch
        self._progress.say(
            f"{run.run_id}: out of memory at micro_batch {run.hparams.micro_batch}; tried again at {size}"
        )
        flight.abandon(forget=True)
        header = self._store.header(run.run_id)
        assert header is not None
        self._store.begin(replace(header, run=smaller), anew=True).close()
        return smaller

    def _replace(self, dead: Worker, source: Source) -> None:
        """Starts another worker for one that died; its runs begin again, unless ATTEMPTS brought no new step."""
        code = dead.stop()
        cause = f"the worker died (exit code {code}; see {dead.log})"
        kills, before = oom_kills(os.getpid()), self._oom_kills
        self._oom_kills = kills
        born = dead in self._ready
        self._stillborn += not born
        if self._stillborn == ATTEMPTS:
            raise MachineError(f"{cause} before it was ready, {ATTEMPTS} times in a row: {dead.last_words()}")
        index = self._workers.index(dead)
        worker = self._workers[index] = self._start(index)
        flights = self._flights.pop(dead, {})
        if not flights:
            return
        deaths = min(flight.deaths for flight in flights.values()) + born
        if born and code == -9 and kills > before:
            self._flights[worker] = flights
            size = next(iter(flights.values())).run.hparams.micro_batch
            message = f"the kernel ended the worker for want of memory, at micro_batch {size}"
            self._end(worker, list(flights.values()), Outcome.OUT_OF_MEMORY, message, source)
        elif deaths < ATTEMPTS:
            them = "it begins" if len(flights) == 1 else "they begin"
            self._progress.say(f"{', '.join(flights)}: {cause}; {them} again")
            for flight in flights.values():
                flight.abandon()
            furthest = max(flight.furthest for flight in flights.values())
            self._begin(worker, [flight.run for flight in flights.values()], source, deaths=deaths, furthest=furthest)
        elif any(flight.shared for flight in flights.values()):
            self._train_apart(list(flights.values()), f"{cause}, {ATTEMPTS} times in a row with no new step between")
        else:
            self._flights[worker] = flights
            message = f"{cause}, {ATTEMPTS} times in a row with no new step between"
            self._end(worker, list(flights.values()), Outcome.FAILED, message, source)

    def _order_checkpoints(self, *, now: bool = False) -> None:
        """Tells workers whose runs are due to write one."""
        for worker, flights in self._flights.items():
            for run_id, flight in flights.items():
                if flight.wants_checkpoint(now=now):
                    worker.send(Save(run_id=run_id, path=flight.part))

    def _save_all(self, source: Source) -> None:
        """A last checkpoint of every run in the air, as far as it comes within LAST_SAVE_SECONDS."""
        self._order_checkpoints(now=True)
        flying = [flight for worker in self._ready & self._flights.keys() for flight in self._flights[worker].values()]
        missing = {flight.run.run_id for flight in flying if flight.saving}
        deadline = time.monotonic() + LAST_SAVE_SECONDS
        while missing and (left := deadline - time.monotonic()) > 0:
            for worker in self._heard_within(min(left, LOOK_SECONDS)):
                report = worker.receive()
                flights = self._flights.get(worker, {})
                match report:
                    case Recorded(run_id=run_id, record=record):
                        flights[run_id].record(record)
                        if record.evaluated:
                            source.heard(flights[run_id].run, record)
                            if source.judged:  # whether it goes on is for the next session to say
                                missing.discard(run_id)
                    case Saved(run_id=run_id, seconds=seconds, problem=problem):
                        flights[run_id].checkpointed(seconds, problem)
                        missing.discard(run_id)
                    case Finished() | Refused():  # the next session finds out
                        missing -= flights.keys()
                    case None:
                        missing -= flights.keys()
                        worker.stop()
                        self._workers.remove(worker)
                    case _:
                        pass

    def _start(self, index: int) -> Worker:
        device, num_gpus = self._options.device, (self._environment or {}).get("num_gpus", 0)
        if device in ("auto", "cuda") and num_gpus:
            device = f"cuda:{index % num_gpus}"
        setup = Setup(spec=self._study.spec, device=device, base=Path.cwd())
        return Worker(setup, self._store.root / f"worker-{index}.log")

    def _welcome(self, worker: Worker, report: Ready) -> dict[str, Any]:
        """Freezes the environment with the study's first worker, and holds every later one to it."""
        frozen = self._store.read_json("environment.json")
        if frozen is None:
            asked = {"study_sha256": question_sha256(self._study.resolved())}
            self._store.write_json("environment.json", {**describe(report.environment), **asked})
        else:
            refuse_if_changed(frozen, report.environment, self._study.name, str(self._store.root))
        self._ready.add(worker)
        self._stillborn = 0
        self._environment, self._num_params = report.environment, report.num_params
        return report.environment
