"""The workers of a study: started, kept busy, watched, and replaced when they die."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpstudy.errors import MachineError, UserError
from hpstudy.records import Outcome, Run, StepRecord
from hpstudy.running.active_run import ActiveRun, header_of, recorded_outcome, with_smaller_micro_batch
from hpstudy.running.capacity import num_workers, trainings_at_once, worker_device
from hpstudy.running.environment import (
    ACCEPTED,
    admitted,
    code_changes,
    describe,
    differences,
    inexact,
    kind_of,
    with_code,
    with_kind,
)
from hpstudy.running.executors import (
    POLL_SECONDS,
    START_SECONDS,
    AwakeClock,
    Ending,
    EngineLost,
    Executor,
    Worker,
    WorkerLost,
    refusal,
)
from hpstudy.running.interface import Interrupted, Options, Progress, StopRequest
from hpstudy.running.local import pinning_variables
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
from hpstudy.running.worker_states import Doing, WorkersFile, WorkerState
from hpstudy.study import Study, study_sha256
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.system import cores, may_have_gpu
from hpstudy.tracking.store import RunStore
from hpstudy.tracking.wandb_sink import WandbSink

MOST_LOST = 100  # workers in a row that were lost with their machines, without a new step; then they count as dead
ATTEMPTS = 3  # worker deaths in a row, without a new step or before the worker was ready, after which we give up
HUNG_SECONDS = 600.0  # least silence, unless the study sets it, after which a worker counts as hung
HUNG_STEPS = 50  # the same as a multiple of the longest gap between two records
PLACES_SECONDS = 5.0  # between two looks at the places of a cluster
LAST_SAVE_SECONDS = 5.0  # for the last checkpoints of a study that is stopped, and besides
LAST_SAVE_RATE = 50e6  # bytes per second at least
BYTES_PER_PARAM = 12  # of a checkpoint: a weight and two moments


T = TypeVar("T")


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
        executor: Executor,
    ) -> None:
        self._study, self._store, self._wandb, self._executor = study, store, wandb, executor
        self._options, self._progress, self._stop = options, progress, stop
        self._workers: dict[Worker, int] = {}  # their numbers
        self._ready: dict[Worker, Ready] = {}
        self._idle: dict[Worker, None] = {}  # in order; ready and without a run
        self._starting: dict[Worker, float] = {}  # since when, by the clock
        self._active: dict[Worker, ActiveRun] = {}  # the runs of busy workers
        self._waiting: deque[Run] = deque()  # runs for idle workers
        self._attempts: dict[str, tuple[int, int]] = {}  # of runs that wait again: worker deaths, furthest step
        self._environment: dict[str, Any] | None = None
        self._num_params = 0
        self._exact = True  # whether a step trained again must have the bits of its record
        self._clock = AwakeClock()
        self._looked = self._ordered = self._clock.seconds()  # at every worker; for checkpoints
        self._longest_gap = 0.0  # seconds between two records of any run
        self._wanted, self._wanted_at = 0, 0.0
        self._said = set[str]()
        self._early_deaths = Counter[str]()  # by machine: workers in a row that died before they were ready
        self._useless = set[int]()  # numbers of the workers that could not be built on their GPU
        self._lost = 0  # workers in a row that were lost, without a new step
        self._code_noted = False
        self._file = WorkersFile(store)

    @property
    def environment(self) -> dict[str, Any]:
        """That of the worker that became ready last. Starts the first one if there is none."""
        if self._environment is None:
            self.first()
        assert self._environment is not None
        return self._environment

    def first(self) -> Worker:
        """An idle worker, which may measure, or a busy one if there is no idle one.

        Starts a worker if there is none, and waits until one is ready.
        """
        while not self._ready:
            if not self._workers:
                self._start_first()
            for worker in self._reporting():
                self._handle_report(worker, None)
        return next(iter(self._idle or self._ready))

    def _start_first(self) -> None:
        """Starts the first workers."""
        count = self._surely()
        if self._environment is None:
            if pinning := pinning_variables():
                self._say_once(
                    f"{', '.join(pinning)} would pin every training to the same cores, so workers do not get it"
                )
            many = "a worker" if count == 1 else f"{count} workers"
            self._say_once(f"starting {many}: loading torch, the corpus and the model")
        for _ in range(count):
            self._start_worker()

    def _surely(self) -> int:
        """How many workers the study gets as far as that is sure before one of them has told what it runs on.

        One, unless they train on this machine's CPU, and no measurement comes first that the others would disturb.
        """
        on_cpu = self._options.device == "cpu" or (self._options.device == "auto" and not may_have_gpu())
        if self._executor.grows or self._study.auto_micro_batch or not on_cpu:
            return 1
        return num_workers(self._study, {"num_gpus": 0, "cores": cores()}, self._options, self._say_once)

    def measure(self, work: Callable[[Worker], T]) -> T:
        """What `work` measures on an idle worker, or on another one if its machine is lost meanwhile."""
        while True:
            try:
                return work(self.first())
            except WorkerLost as lost:
                self._progress.say(f"{lost}; measuring again")
                self._drop(lost.worker)

    def restart_first(self) -> Worker:
        """Replaces a worker that has measured, which frees its memory, or has ended with that."""
        self._drop(self.first())
        return self.first()

    def raise_if_stopped(self) -> None:
        """Raises Interrupted if the user has asked to stop."""
        if self._stop.requested:
            raise Interrupted("stopped")

    def train(self, queue: RunQueue) -> None:
        """Keeps the workers busy until the queue is empty and every run that belongs to it has ended.

        If the study is stopped, or a cluster's head is lost, active runs write a last checkpoint, and each says where
        it resumes.
        """
        try:
            while True:
                more = self._assign(queue)
                belong = any(queue.belongs(active.run) for active in self._active.values())
                if not (more or belong or self._fetch(queue)):
                    return
                for worker in self._reporting(0.0 if more else POLL_SECONDS):
                    self._handle_report(worker, queue)
                if self._clock.seconds() - self._ordered >= min(POLL_SECONDS, self._options.checkpoint_seconds):
                    self._order_checkpoints()
        except (Interrupted, EngineLost):
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
            self._executor.stop(list(self._workers))
            self._executor.close()
            self._file.remove()

    def states(self) -> list[WorkerState]:
        """What each worker does now."""
        return [self._state_of(worker, number) for worker, number in self._workers.items()]

    def _state_of(self, worker: Worker, number: int) -> WorkerState:
        ready, active = self._ready.get(worker), self._active.get(worker)
        begun = Doing.WAITS if worker.waits and not worker.place else Doing.STARTS
        return WorkerState(
            number=number,
            node=worker.place,
            kind=kind_of(ready.environment) if ready else "",
            state=Doing.TRAINS if active else Doing.IDLE if ready else begun,
            run=active.run.run_id if active else None,
        )

    def _assign(self, queue: RunQueue) -> bool:
        """Gives idle workers the runs that wait, and returns whether it stopped because reports should not wait longer.

        No worker starts for a queue without a run to train.
        """
        if not self._ready and not self._active and self._fetch(queue):
            self.first()
        until = time.monotonic() + POLL_SECONDS
        while self._idle and self._fetch(queue):
            if time.monotonic() > until:
                return True
            run = self._waiting.popleft()
            worker = self._pick(run)
            if self._begin(worker, run, queue):
                del self._idle[worker]
        if self._active:
            self._start_more()
        return False

    def _pick(self, run: Run) -> Worker:
        """An idle worker for a run, of the kind that trained the same seed before if there is one.

        So the two sides of a pair of fresh runs train alike as far as that can be had.
        """
        if self._study.mixed:
            same_seed = {view.header.kind for view in self._store.runs() if view.header.run.seed == run.seed}
            for worker in self._idle:
                if kind_of(self._ready[worker].environment) in same_seed:
                    return worker
        return next(iter(self._idle))

    def _start_more(self) -> None:
        """Starts the workers that the study lacks. As a cluster grows, there may be more."""
        now = self._clock.seconds()
        if not self._wanted or (self._executor.grows and now - self._wanted_at > PLACES_SECONDS):
            places = self._executor.places(trainings_at_once(self._study, self.environment, self._options.device))
            self._wanted = num_workers(self._study, self.environment, self._options, self._say_once, places)
            self._wanted_at = now
        for _ in range(self._wanted - len(self._workers) - len(self._useless)):
            self._start_worker()

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._progress.say(line)

    def _fetch(self, queue: RunQueue) -> bool:
        """Takes a run from the queue if none waits. Returns whether one waits now.

        A run with a result of an earlier session goes back to the queue at once, which may bring another run.
        """
        while not self._waiting and (run := queue.next()) is not None:
            if any(active.run.run_id == run.run_id for active in self._active.values()):
                continue  # a worker trained it ahead and goes on
            result = self._store.result(run.run_id)
            if result is None:
                self._waiting.append(run)
                continue
            for record in self._store.view(run.run_id).records():
                queue.on_step(run, record)  # in case the journal lost it
            queue.on_result(run, result)
        return bool(self._waiting)

    def _begin(self, worker: Worker, run: Run, queue: RunQueue) -> bool:
        """Opens a run in the sinks and orders its training. False if the records show that it has ended."""
        active = self._activate(worker, run, *self._attempts.pop(run.run_id, (0, 0)))
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
                awaits_decision=queue.awaits_decision(active.run),
                checkpoint=active.checkpoint,
                recorded=len(active.recorded),
            )
        )
        return True

    def _activate(self, worker: Worker, run: Run, deaths: int, furthest: int) -> ActiveRun:
        """Opens a run in the sinks."""
        active = ActiveRun(
            header_of(
                run,
                self._store,
                self._study.name,
                self._num_params,
                kind_of(self._ready[worker].environment),
                self._study.coordinates(run.hparams, run.tokens),
            ),
            self._store,
            self._wandb,
            self._progress,
            clock=self._clock,
            deaths=deaths,
            furthest=furthest,
            exact=self._exact,
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
        if outcome is None and last and self._awaits_decision(active.run, last, queue):
            return Outcome.PRUNED if queue.should_stop(active.run, last) else None
        return outcome

    def _reporting(self, seconds: float = POLL_SECONDS) -> Sequence[Worker]:
        """Waits for workers with a report or a death to handle, and kills those that are silent for too long.

        With `seconds` = 0 it does not wait.
        """
        while True:
            self.raise_if_stopped()
            self._file.update(self.states, self._executor.room)
            reporting = self._executor.heard(seconds)
            if self._clock.seconds() - self._looked > POLL_SECONDS or not reporting:
                self._end_silent(set(reporting))
            if reporting or not seconds:
                return reporting

    def _end_silent(self, reporting: set[Worker]) -> None:
        """Kills workers that hang. Their ends are then reported."""
        now = self._looked = self._clock.seconds()
        limit = self._study.budget.hang_seconds or max(HUNG_SECONDS, HUNG_STEPS * self._longest_gap)
        for worker in self._active.keys() - reporting:
            active = self._active[worker]
            if (silent := active.silent_seconds()) > limit and not worker.waits:
                self._progress.say(f"{active.run.run_id}: no report for {silent:.0f} s; its worker is ended")
                worker.kill()
                active.on_report()
        for worker, since in list(self._starting.items()):
            if worker.waits:
                self._starting[worker] = now
            elif now - since > START_SECONDS:
                self._progress.say(f"a worker is not ready after {START_SECONDS:.0f} s; it is ended")
                worker.kill()
                self._starting[worker] = now

    def _handle_report(self, worker: Worker, queue: RunQueue | None) -> None:
        """Takes the next report of a worker. `queue` is None as long as no run is in training."""
        report = worker.receive(self.raise_if_stopped)
        silent = self._active[worker].on_report() if worker in self._active else 0.0
        match report:
            case Ready():
                self._admit(worker, report)
            case Refused():
                self._refuse(worker, refusal(report))
            case Resumed(step=step, problem=problem):
                run_id = self._active[worker].run.run_id
                self._active[worker].resumes_after = step
                self._progress.say(
                    f"{run_id}: its checkpoint cannot be used ({problem}); it trains again from step 1"
                    if problem
                    else f"{run_id}: resumes after step {step}"
                )
            case Recorded(record=record):
                assert queue is not None
                active = self._active[worker]
                active.record(record)
                self._lost = 0
                self._longest_gap = max(self._longest_gap, silent)
                queue.on_step(active.run, record)
                if self._awaits_decision(active.run, record, queue):
                    worker.send(StopDecision(stop=queue.should_stop(active.run, record)))
                    if (forecast := queue.forecast(active.run, record)) is not None:
                        self._progress.forecast(active.run, forecast)
            case Saved() as saved:
                self._active[worker].on_saved(saved)
            case Finished(outcome=outcome, message=message, last=last):
                assert queue is not None
                active = self._active.pop(worker)
                if last:
                    self._drop(worker)
                else:
                    self._idle[worker] = None
                self._end(active, outcome, message, queue)
            case None:
                self._replace(worker, queue)
            case _:
                raise AssertionError(f"unexpected report {report!r}")

    def _awaits_decision(self, run: Run, record: StepRecord, queue: RunQueue) -> bool:
        """Whether the worker waits after this step to be told whether its run goes on."""
        return record.may_be_pruned(self._study.spec.evals) and queue.awaits_decision(run)

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

    def _replace(self, dead: Worker, queue: RunQueue | None) -> None:
        """Forgets a worker that died; another is started. Its run waits for a worker again.

        A run fails if ATTEMPTS deaths in a row brought no new step. A machine that is lost is no fault of its runs.
        """
        was_ready, active = dead in self._ready, self._active.pop(dead, None)
        self._drop(dead)
        ending = dead.last_words()
        self._lost += ending.lost
        lost = ending.lost and self._lost < MOST_LOST
        if not was_ready and not lost:
            self._count_early_death(dead, ending)
        if active is None:
            if lost:
                self._progress.say(ending.cause)
            return
        assert queue is not None
        run, deaths = active.run, active.deaths + (not lost)
        if ending.out_of_memory:
            size = run.hparams.micro_batch
            message = f"{ending.cause}, because memory ran out, at micro_batch {size}"
            self._end(active, Outcome.OUT_OF_MEMORY, message, queue)
        elif deaths < ATTEMPTS:
            self._progress.say(f"{run.run_id}: {ending.cause}; it starts again")
            active.abandon()
            self._attempts[run.run_id] = deaths, active.furthest
            self._waiting.appendleft(run)
        else:
            self._end(active, Outcome.FAILED, f"{ending.cause}, {ATTEMPTS} times in a row without a new step", queue)

    def _count_early_death(self, dead: Worker, ending: Ending) -> None:
        """After ATTEMPTS deaths on one machine, leaves it out if there are others, and gives up if there are none."""
        self._early_deaths[dead.place] += 1
        hopeless = self._environment is None and not self._executor.grows
        if self._early_deaths[dead.place] < ATTEMPTS and not hopeless:
            return
        if self._executor.avoid(dead) and self._executor.places(0):
            self._leave_out(dead, f"{ending.cause}: {ending.last_line}")
            return
        doctor = f"try `hpstudy doctor{' --cluster auto' if self._executor.grows else ''}`"
        if hopeless:
            raise MachineError(f"the worker died before it was ready: {ending.last_line}; {doctor}")
        raise MachineError(
            f"{ending.cause} before it was ready, {ATTEMPTS} times in a row: {ending.last_line}; {doctor}"
        )

    def _leave_out(self, worker: Worker, why: str) -> None:
        """Says why a machine is not used. Workers that wait for a place start again, so that they get none there."""
        self._say_once(f"{worker.place or 'a node'}: not used, because {why}")
        self._drop(*(other for other in self._starting if other.waits and not other.place))
        self._wanted = 0  # there are fewer places

    def _drop(self, *workers: Worker) -> None:
        """Ends workers, if they have not ended, and forgets them."""
        self._executor.stop(workers)
        for worker in workers:
            del self._workers[worker]
            for known in (self._ready, self._idle, self._starting):
                known.pop(worker, None)

    def _order_checkpoints(self, *, now: bool = False) -> None:
        self._ordered = self._clock.seconds()
        for worker, active in self._active.items():
            if active.begin_save(now=now):
                worker.send(Save(path=active.part))

    def _save_all(self, queue: RunQueue) -> None:
        """Waits for a last checkpoint of every active run, for as long as its size may take."""
        self._order_checkpoints(now=True)
        missing = {worker for worker, active in self._active.items() if active.saving}
        deadline = time.monotonic() + LAST_SAVE_SECONDS + BYTES_PER_PARAM * self._num_params / LAST_SAVE_RATE
        while missing and (left := deadline - time.monotonic()) > 0:
            for worker in self._executor.heard(min(left, POLL_SECONDS)):
                report = worker.receive()
                match report:
                    case Recorded(record=record):
                        active = self._active[worker]
                        active.record(record)
                        queue.on_step(active.run, record)
                        if self._awaits_decision(active.run, record, queue):
                            missing.discard(worker)  # the next session decides: no checkpoint comes
                    case Saved() as saved:
                        self._active[worker].on_saved(saved)
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
                        self._drop(worker)
                    case _:
                        pass

    def _start_worker(self) -> None:
        """Starts a worker with the smallest free number."""
        taken = {*self._workers.values(), *self._useless}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        worker = self._executor.start(self._setup(number), number)
        self._workers[worker], self._starting[worker] = number, self._clock.seconds()

    def _setup(self, number: int) -> Setup:
        device = self._options.device
        if not self._executor.grows:  # else the cluster chooses the GPUs
            device = worker_device(number, self._study, self._environment or {}, device)
        return Setup(spec=self._study.spec, device=device, base=Path.cwd())

    def _admit(self, worker: Worker, report: Ready) -> None:
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
        try:
            if self._study.mixed and not accept and differences(frozen, report.environment):
                now = with_kind(frozen, report.environment)
            else:
                now = admitted(frozen, report.environment, str(self._store.root), accept=accept)
            self._refuse_other_code(report)
        except UserError as error:
            changes = "; ".join(differences(frozen, report.environment))
            self._refuse(worker, error, f"the study began on another kind of machine: {changes}" if changes else "")
            return
        if now != frozen:
            self._store.write_json(ENVIRONMENT, now)
        if self._environment is None:
            found = report.environment
            self._progress.say(
                f"training on {found['device']} ({found['device_name']}) in {found['precision']}: {found['reason']}"
            )
        del self._starting[worker]
        self._ready[worker], self._idle[worker] = report, None
        del self._early_deaths[worker.place]
        self._environment, self._num_params = report.environment, report.num_params
        self._exact = not (inexact(self._study, report.environment) or code_changes(frozen, report.environment))

    def _refuse_other_code(self, report: Ready) -> None:
        """Raises UserError if the worker runs another hpstudy than those before it in this session."""
        ours = {ready.environment["code_sha256"] for ready in self._ready.values()}
        if ours and report.environment["code_sha256"] not in ours and not self._study.mixed:
            raise UserError("it has another version of hpstudy than the workers before it; install the same everywhere")

    def _refuse(self, worker: Worker, why: UserError | MachineError, in_short: str = "") -> None:
        """Leaves out the machine or GPU of a worker that cannot train this study. Raises `why` if it is the last."""
        if self._executor.avoid(worker) and self._executor.places(0):
            self._drop(worker)
            self._leave_out(worker, in_short or str(why))
        elif isinstance(why, MachineError) and self._can_do_without_a_gpu():
            number = self._workers[worker]
            self._useless.add(number)
            self._drop(worker)
            self._progress.say(
                f"worker {number}, on {self._setup(number).device}, is left out until the study is resumed: {why}"
            )
        else:
            raise why

    def _can_do_without_a_gpu(self) -> bool:
        """Whether other GPUs of this machine train, so that one whose memory another program has may be left out."""
        return bool(self._ready) and not self._executor.grows and self.environment["num_gpus"] > 1
