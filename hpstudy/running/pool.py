"""The workers of a study: started, kept busy, watched, and replaced when they die."""

from __future__ import annotations

import os
import time
from collections import deque
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.records import Outcome, Run
from hpstudy.running.active_run import ActiveRun, header_of, recorded_outcome, with_smaller_micro_batch
from hpstudy.running.capacity import num_workers, worker_device
from hpstudy.running.environment import ACCEPTED, admitted, describe, inexact, with_code
from hpstudy.running.interface import Interrupted, Options, Progress, StopRequest
from hpstudy.running.messages import (
    Finished,
    Ready,
    Recorded,
    Refused,
    Resumed,
    Save,
    Saved,
    Setup,
    StopDecision,
    Train,
)
from hpstudy.running.run_queue import RunQueue
from hpstudy.running.worker import POLL_SECONDS, START_SECONDS, AwakeClock, Worker, pinning_variables, refusal, stop_all
from hpstudy.study import Study, study_sha256
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.system import oom_kills
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink

ATTEMPTS = 3  # worker deaths in a row, without a new step or before the worker was ready, after which we give up
HUNG_SECONDS = 600.0  # least silence, unless the study sets it, after which a worker counts as hung
HUNG_STEPS = 50  # the same as a multiple of the longest gap between two records
LAST_SAVE_SECONDS = 5.0  # for the last checkpoints of a study that is stopped


class WorkerPool:
    """The workers of a study and the runs that they train."""

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
        self._workers: list[Worker] = []
        self._ready: set[Worker] = set()
        self._active: dict[Worker, ActiveRun] = {}  # the runs of busy workers
        self._waiting: deque[Run] = deque()  # runs for idle workers
        self._environment: dict[str, Any] | None = None
        self._num_params = 0
        self._clock = AwakeClock()
        self._longest_gap = 0.0  # seconds between two records of any run
        self._all_started = False
        self._early_deaths = 0  # workers in a row that died before they were ready
        self._code_noted = False
        self._oom_kills = oom_kills(os.getpid())

    @property
    def environment(self) -> dict[str, Any]:
        """That of the worker that became ready last. Starts the first one if there is none."""
        if self._environment is None:
            self.first()
        assert self._environment is not None
        return self._environment

    def first(self) -> Worker:
        """The worker that measures. Starts it if there is none, and waits until it is ready."""
        if not self._workers:
            self._start_first()
        if self._workers[0] not in self._ready:
            self._admit_first()
        return self._workers[0]

    def restart_first(self) -> None:
        """Replaces the first worker's process, which frees its memory."""
        self._workers[0].stop()
        self._workers[0] = self._start_worker(0)
        self._admit_first()

    def _start_first(self) -> None:
        say = self._progress.say
        if pinning := pinning_variables():
            say(f"{', '.join(pinning)} would pin every training to the same cores, so workers do not get it")
        say("starting a worker: loading torch, the corpus and the model")
        self._workers = [self._start_worker(0)]
        environment = self._admit_first()
        say(
            f"training on {environment['device']} ({environment['device_name']}) in {environment['precision']}: "
            f"{environment['reason']}"
        )

    def _admit_first(self) -> dict[str, Any]:
        worker = self._workers[0]
        return self._admit(worker, worker.wait_until_ready(self.raise_if_stopped))

    def _start_others(self) -> None:
        """Starts the workers that the study still lacks, once a run needs one."""
        count = num_workers(self._study, self.environment, self._options, self._progress.say)
        self._workers += [self._start_worker(index) for index in range(len(self._workers), count)]
        self._all_started = True

    def raise_if_stopped(self) -> None:
        """Raises Interrupted if the user has asked to stop."""
        if self._stop.requested:
            raise Interrupted("stopped")

    def train(self, queue: RunQueue) -> None:
        """Keeps the workers busy until the queue is empty and every run has ended.

        If the study is stopped, active runs write a last checkpoint, and each says where it resumes.
        """
        try:
            while True:
                self._assign(queue)
                if not self._active:
                    return
                for worker in self._reporting():
                    self._handle_report(worker, queue)
                self._order_checkpoints()
        except Interrupted:
            self._save_all(queue)
            for active in self._active.values():
                self._progress.say(f"{active.run.run_id}: {active.left_at}")
            raise

    def close(self) -> None:
        """Ends the workers. Active runs stay unfinished."""
        try:
            for active in self._active.values():
                active.abandon()  # first, so that W&B handles it while the workers end
        finally:
            stop_all(self._workers)

    def _assign(self, queue: RunQueue) -> None:
        """Gives idle workers the runs that wait. No worker starts for a queue without a run to train."""
        if not self._all_started and self._fetch(queue):
            self._start_others()
        idle = [worker for worker in self._workers if worker not in self._active]
        while idle and self._fetch(queue):
            if self._begin(idle[0], self._waiting.popleft(), queue):
                del idle[0]

    def _fetch(self, queue: RunQueue) -> bool:
        """Takes a run from the queue if none waits. Returns whether one waits now.

        A run with a result of an earlier session goes back to the queue at once, which may bring another run.
        """
        while not self._waiting and (run := queue.next()) is not None:
            result = self._store.result(run.run_id)
            if result is None:
                self._waiting.append(run)
                continue
            for record in self._store.view(run.run_id).records():
                queue.on_step(run, record)  # in case the journal lost it
            queue.on_result(run, result)
        return bool(self._waiting)

    def _begin(self, worker: Worker, run: Run, queue: RunQueue, *, deaths: int = 0, furthest: int = 0) -> bool:
        """Opens a run in the sinks and orders its training. False if the records show that it has ended."""
        active = self._activate(run, deaths, furthest)
        for record in active.recorded:
            queue.on_step(active.run, record)
        if (outcome := self._recorded_outcome(active, queue)) is not None:
            queue.on_result(active.run, active.finish(outcome, ""))
            return False
        self._active[worker] = active
        self._note_code()
        worker.send(
            Train(
                run=active.run,
                awaits_decision=queue.awaits_decision,
                checkpoint=active.checkpoint,
                recorded=len(active.recorded),
            )
        )
        return True

    def _activate(self, run: Run, deaths: int, furthest: int) -> ActiveRun:
        """Opens a run in the sinks."""
        active = ActiveRun(
            header_of(run, self._store, self._study.name, self._num_params),
            self._store,
            self._wandb,
            self._progress,
            clock=self._clock,
            deaths=deaths,
            furthest=furthest,
            exact=not inexact(self._study, self._environment or {}),
            checkpoint_seconds=self._options.checkpoint_seconds,
        )
        active.begin()
        return active

    def _note_code(self) -> None:
        """Records, before this session trains its first run, that it does so with other code than the study began."""
        if not self._code_noted:
            frozen = self._store.read_json(ENVIRONMENT) or {}
            if (now := with_code(frozen, self._environment or {})) != frozen:
                self._store.write_json(ENVIRONMENT, now)
            self._code_noted = True

    def _recorded_outcome(self, active: ActiveRun, queue: RunQueue) -> Outcome | None:
        """How a run ended whose last record was written but not its result; None if it has not ended."""
        evals = self._study.spec.evals
        outcome = recorded_outcome(active.run, active.recorded, self._study.vocab_size, evals)
        last = active.recorded[-1] if active.recorded else None
        if outcome is None and last and last.evaluated and queue.awaits_decision:
            return Outcome.PRUNED if queue.should_stop(active.run, last) else None
        return outcome

    def _reporting(self) -> list[Worker]:
        """Waits for workers with a report or a death to handle, and kills those that are silent for too long."""
        while True:
            self.raise_if_stopped()
            reporting = self._reporting_within(POLL_SECONDS)
            limit = self._study.budget.hang_seconds or max(HUNG_SECONDS, HUNG_STEPS * self._longest_gap)
            for worker in self._active.keys() - reporting:
                active = self._active[worker]
                silent = active.silent_seconds()
                if silent > (limit if worker in self._ready else max(limit, START_SECONDS)):
                    self._progress.say(f"{active.run.run_id}: no report for {silent:.0f} s; its worker is ended")
                    worker.kill()
                    reporting.append(worker)
            if reporting:
                return reporting

    def _reporting_within(self, seconds: float) -> list[Worker]:
        by_connection = {worker.connection: worker for worker in self._workers}
        return [by_connection[connection] for connection in wait(list(by_connection), timeout=seconds)]  # type: ignore[index]

    def _handle_report(self, worker: Worker, queue: RunQueue) -> None:
        report = worker.receive(self.raise_if_stopped)
        silent = self._active[worker].on_report() if worker in self._active else 0.0
        match report:
            case Ready():  # of a worker that was started later
                self._admit(worker, report)
            case Refused():
                raise refusal(report)
            case Resumed(step=step, problem=problem):
                run_id = self._active[worker].run.run_id
                self._active[worker].resumes_after = step
                self._progress.say(
                    f"{run_id}: its checkpoint cannot be used ({problem}); it trains again from step 1"
                    if problem
                    else f"{run_id}: resumes after step {step}"
                )
            case Recorded(record=record):
                active = self._active[worker]
                active.record(record)
                self._longest_gap = max(self._longest_gap, silent)
                queue.on_step(active.run, record)
                if record.evaluated and queue.awaits_decision and record.eval_index != self._study.spec.evals:
                    worker.send(StopDecision(stop=queue.should_stop(active.run, record)))
            case Saved(seconds=seconds, problem=problem):
                self._active[worker].on_saved(seconds, problem)
            case Finished(outcome=outcome, message=message, last=last):
                active = self._active.pop(worker)
                if last:
                    self._replace(worker, queue)
                self._end(active, outcome, message, queue)
            case None:
                self._replace(worker, queue)
            case _:
                raise AssertionError(f"unexpected report {report!r}")

    def _end(self, active: ActiveRun, outcome: Outcome, message: str, queue: RunQueue) -> None:
        """Writes the result of a run, unless it is tried again with less memory."""
        if outcome is Outcome.OUT_OF_MEMORY and (smaller := self._with_less_memory(active)) is not None:
            self._waiting.appendleft(smaller)
        else:
            queue.on_result(active.run, active.finish(outcome, message))

    def _with_less_memory(self, active: ActiveRun) -> Run | None:
        """The run at a smaller micro-batch, if the study neither searches it nor forbids that."""
        run = active.run
        if not self._study.budget.smaller_micro_batch or "micro_batch" in self._study.space:
            return None
        if (smaller := with_smaller_micro_batch(run, self._study.spec)) is None:
            return None
        self._progress.say(
            f"{run.run_id}: out of memory at micro_batch {run.hparams.micro_batch}; tried again at "
            f"{smaller.hparams.micro_batch}"
        )
        active.restart_with(smaller)
        return smaller

    def _replace(self, dead: Worker, queue: RunQueue) -> None:
        """Replaces a worker that died. Its run starts again, unless ATTEMPTS deaths brought no new step."""
        code = dead.stop()
        cause = f"the worker died (exit code {code}; see {dead.log})"
        kills, before = oom_kills(os.getpid()), self._oom_kills
        self._oom_kills = kills
        was_ready = dead in self._ready
        self._early_deaths += not was_ready
        if self._early_deaths == ATTEMPTS:
            raise MachineError(
                f"{cause} before it was ready, {ATTEMPTS} times in a row: {dead.last_log_line()}; try `hpstudy doctor`"
            )
        index = self._workers.index(dead)
        worker = self._workers[index] = self._start_worker(index)
        if (active := self._active.pop(dead, None)) is None:
            return
        run, deaths = active.run, active.deaths + was_ready
        if was_ready and code == -9 and kills > before:
            size = run.hparams.micro_batch
            message = f"the kernel killed the worker because memory ran out, at micro_batch {size}"
            self._end(active, Outcome.OUT_OF_MEMORY, message, queue)
        elif deaths < ATTEMPTS:
            self._progress.say(f"{run.run_id}: {cause}; it starts again")
            active.abandon()
            self._begin(worker, run, queue, deaths=deaths, furthest=active.furthest)
        else:
            self._end(active, Outcome.FAILED, f"{cause}, {ATTEMPTS} times in a row without a new step", queue)

    def _order_checkpoints(self, *, now: bool = False) -> None:
        for worker, active in self._active.items():
            if active.begin_save(now=now):
                worker.send(Save(path=active.part))

    def _save_all(self, queue: RunQueue) -> None:
        """Waits for a last checkpoint of every active run, for LAST_SAVE_SECONDS at most."""
        self._order_checkpoints(now=True)
        missing = {worker for worker in self._ready & self._active.keys() if self._active[worker].saving}
        deadline = time.monotonic() + LAST_SAVE_SECONDS
        while missing and (left := deadline - time.monotonic()) > 0:
            for worker in self._reporting_within(min(left, POLL_SECONDS)):
                report = worker.receive()
                match report:
                    case Recorded(record=record):
                        active = self._active[worker]
                        active.record(record)
                        queue.on_step(active.run, record)
                        if record.evaluated and queue.awaits_decision:  # the next session decides: no checkpoint comes
                            missing.discard(worker)
                    case Saved(seconds=seconds, problem=problem):
                        self._active[worker].on_saved(seconds, problem)
                        missing.discard(worker)
                    case Resumed(step=step):
                        self._active[worker].resumes_after = step
                    case Finished():  # the next session finds out how
                        self._active[worker].trained = True
                        missing.discard(worker)
                    case Refused():
                        missing.discard(worker)
                    case None:
                        missing.discard(worker)
                        worker.stop()
                        self._workers.remove(worker)
                    case _:
                        pass

    def _start_worker(self, index: int) -> Worker:
        device = worker_device(index, self._study, self._environment or {}, self._options.device)
        setup = Setup(spec=self._study.spec, device=device, base=Path.cwd())
        return Worker.start(setup, self._store.root / f"worker-{index}.log")

    def _admit(self, worker: Worker, report: Ready) -> dict[str, Any]:
        """Makes a worker ready for runs. The study's first freezes the environment; one that differs is refused."""
        frozen, accept = self._store.read_json(ENVIRONMENT), self._options.accept_environment
        if frozen is None:
            if self._store.begun and not accept:
                raise MachineError(
                    f"{self._store.root / ENVIRONMENT}: is missing, so nothing says what the study's numbers depend "
                    "on; restore it from a copy, or record this machine's with --accept-environment"
                )
            frozen = {**describe(report.environment), "study_sha256": study_sha256(self._study.resolved())}
            if self._store.begun:
                frozen[ACCEPTED] = ["environment.json was lost, and recorded again during the study"]
            self._store.write_json(ENVIRONMENT, frozen)
        if (now := admitted(frozen, report.environment, str(self._store.root), accept=accept)) != frozen:
            self._store.write_json(ENVIRONMENT, now)
        self._ready.add(worker)
        self._early_deaths = 0
        self._environment, self._num_params = report.environment, report.num_params
        return report.environment
