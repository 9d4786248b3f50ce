"""Joins the arrows: proposals become runs, workers train them, records go to the sinks, results are told.

The driver is the only writer: it alone opens the Optuna storage, writes the run store and talks to W&B. The order of
writing is header, steps, result, tell, so that a study killed at any moment goes on from what is on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import HParams, derived
from hpstudy.records import Outcome, Phase, Run, RunHeader, StepRecord
from hpstudy.running.confirming import baseline_run_id, confirm_runs, looks_so_far
from hpstudy.running.cost import measure, welcome
from hpstudy.running.environment import describe, refuse_if_changed
from hpstudy.running.interface import Interrupted, Options, Progress, StopRequest
from hpstudy.running.micro_batch import find
from hpstudy.running.packing import best_pack, take_pack
from hpstudy.running.sources import Fixed, Source, Trials
from hpstudy.running.summary import RunSummary
from hpstudy.running.tuned_lr import JOURNAL, tuned_lr
from hpstudy.running.workers import (
    LOOK_SECONDS,
    Finished,
    Ready,
    Recorded,
    Refused,
    Setup,
    Train,
    Word,
    Worker,
)
from hpstudy.search import Search
from hpstudy.study import Study, changed_keys
from hpstudy.tracking.store import RunStore, RunView, RunWriter
from hpstudy.tracking.wandb_sink import Mode, WandbSink, new_wandb_id, resolve_mode, resolve_project
from hpstudy.training.corpus import check_size, load_corpus

ATTEMPTS = 3  # trainings of one run, in all, before workers that die under it make it a failed one


@dataclass(slots=True, kw_only=True)
class _Flight:
    """A run that a worker is training."""

    run: Run
    writer: RunWriter
    summary: RunSummary
    attempt: int  # from 1


def run_study(study: Study, options: Options, progress: Progress, stop: StopRequest) -> RunStore:
    """Searches, trains the baseline and confirms, or goes on where an earlier call was stopped; returns the run store.

    Raises UserError for wrong input before anything is trained, Interrupted on a stop request, MachineError when no
    worker can be kept alive.
    """
    spec = study.spec
    corpus = load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens)  # relative paths: from here
    check_size(corpus, spec.context, study.largest_batch_tokens)
    store = RunStore(options.runs / study.name)
    store.create()
    with store.locked():
        _refuse_edited(store, study)
        try:
            with closing(_Driver(study, store, options, progress, stop)) as driver:
                driver.welcome_workers()
                store.freeze_study(study.path.read_text(encoding="utf-8-sig"), study.resolved())
                driver.search()
                driver.baseline()
                driver.tuned_lr()
                driver.confirm()
                driver.deliver()
        finally:
            store.discard_unless_begun()
    return store


def _refuse_edited(store: RunStore, study: Study) -> None:
    """Raises UserError when the file was edited after its study began."""
    frozen = store.read_json("study.json")
    if frozen is not None and (changes := changed_keys(frozen, study.resolved())):
        remedy = "put the values back, or copy the file under another name for another study"
        raise UserError([f"{study.path}: changed after its study began: {line}; {remedy}" for line in changes])


class _Driver:
    """One session of a study: a warm worker, the sinks, and the loop between them."""

    def __init__(self, study: Study, store: RunStore, options: Options, progress: Progress, stop: StopRequest) -> None:
        self._study, self._store, self._progress, self._stop = study, store, progress, stop
        self._options = options
        self._flights: dict[Worker, dict[str, _Flight]] = {}  # of busy workers, by run id
        self._waiting: deque[Run] = deque()  # for an idle worker
        self._pack = 1
        self._environment: dict[str, Any] | None = None
        self._num_params = 0
        self._ready: set[Worker] = set()
        self._workers: list[Worker] = []
        self._wandb = make_sink(study, store, resolve_mode(options.wandb), progress.say)
        self._workers.append(self._start_worker(0))

    def welcome_workers(self) -> None:
        """Waits for the first worker, whose environment tells how many there shall be, and starts the others."""
        environment = self._welcome(self._workers[0], welcome(self._workers[0], self._look))
        self._progress.say(
            f"training on {environment['device']} ({environment['device_name']}) in {environment['precision']}: "
            f"{environment['reason']}"
        )
        self._settle_micro_batch(environment)
        self._pack = self._pack_size()
        count = num_workers(self._study, environment, self._options, self._pack, self._progress.say)
        self._workers += [self._start_worker(index) for index in range(1, count)]

    def _settle_micro_batch(self, environment: Mapping[str, Any]) -> None:
        """Finds the micro-batch that the study leaves open, once, and keeps it in calibration.json."""
        if not self._study.auto_micro_batch:
            return
        known: dict[str, float] = self._store.read_json("calibration.json") or {}
        if "micro_batch" not in known:
            found = find(self._study, self._workers[0], environment, self._progress.say, self._look)
            if found.probed:
                self._workers[0].stop()
                self._workers[0] = self._start_worker(0)
            known["micro_batch"] = found.size
            self._store.write_json("calibration.json", known)
        self._study = replace(self._study, micro_batch_limit=int(known["micro_batch"]))

    def search(self) -> None:
        """Trains every trial of the search and tells its result."""
        search = Search(self._study, self._store.root / "optuna.journal", trials=self._options.trials)
        if self._wandb.live:
            self._replay_finished()  # what an earlier session was killed with
        self._begin_phase("search", max(search.num_trials, search.num_asked))
        self._train_all(Trials(self._study, search, self._calibrated_tokens))

    def deliver(self) -> None:
        """Waits until W&B has every finished run, those of earlier sessions too.

        Offline runs are written here, once nothing trains any more: a row takes W&B most of a millisecond of a core
        that a training could use.
        """
        if self._wandb.enabled and not self._wandb.live and any(map(self._wandb.lacks, self._finished())):
            self._progress.say("writing the W&B files from the run store")
        self._replay_finished()
        self._wandb.drain(self._look)

    def _replay_finished(self) -> None:
        for view in self._finished():
            self._wandb.replay(view)

    def _finished(self) -> list[RunView]:
        return [view for view in self._store.runs() if view.result is not None]

    def baseline(self) -> None:
        """Trains the baseline at the search seed when it is no trial of the search."""
        if self._study.baseline_proposal() is not None:
            return
        spec = self._study.spec
        tokens = spec.tokens or self._calibrated_tokens(self._study.baseline_hparams(None))
        run = Run(
            run_id=baseline_run_id(self._study),
            phase="baseline",
            trial=None,
            seed=spec.seed,
            tokens=tokens,
            hparams=self._study.baseline_hparams(tokens),
        )
        self._train_fixed("baseline", [run])

    def tuned_lr(self) -> None:
        """Searches the fairer opponent's lr, in as many trials as the search has."""
        if self._study.also != "tuned-lr":
            return
        study = tuned_lr(self._study)
        trials = sum(view.header.run.phase == "search" for view in self._store.runs())
        search = Search(study, self._store.root / JOURNAL, trials=trials)
        self._begin_phase("tuned-lr", search.num_trials)
        self._train_all(Trials(study, search, self._calibrated_tokens, "tuned-lr"))

    def confirm(self) -> None:
        """Trains the winner and the baseline again on fresh seeds."""
        looks = looks_so_far(self._study, self._store, self._progress.say)
        runs = confirm_runs(self._study, looks, {view.run_id: view.header.run for view in self._store.runs()})
        if runs:
            self._train_fixed("confirm", runs)

    def close(self) -> None:
        """Ends the workers, leaves runs in the air without a result, and closes the sinks."""
        for worker in self._workers:
            worker.connection.close()  # all of them begin to end
        for worker in self._workers:
            worker.stop()
        for flights in self._flights.values():
            self._abandon(flights.values())
        self._wandb.close(hurried=self._stop.requested)

    def _begin_phase(self, phase: Phase, num_runs: int) -> None:
        """Tells the view what is to come, and what earlier sessions have finished of it."""
        views = (view for view in self._store.runs() if view.header.run.phase == phase)
        finished = [(view.header.run, view.result) for view in views if view.result is not None]
        self._progress.phase(phase, num_runs, finished)

    def _train_fixed(self, phase: Phase, runs: Sequence[Run]) -> None:
        """Trains runs that are known beforehand."""
        results = ((run, self._store.result(run.run_id)) for run in runs)
        self._progress.phase(phase, len(runs), [(run, result) for run, result in results if result is not None])
        self._train_all(Fixed(runs))

    def _train_all(self, source: Source) -> None:
        """Keeps every worker busy until the source has no run left and none is in the air."""
        while True:
            self._assign(source)
            if not self._flights:
                return
            for worker in self._reporting():
                self._hear(worker, source)

    def _assign(self, source: Source) -> None:
        idle = [worker for worker in self._workers if worker not in self._flights]
        while idle and (run := source.next()) is not None:
            result = self._store.result(run.run_id)  # of an earlier session
            if result is None:
                self._waiting.append(run)
            else:
                source.ended(run, result)
        while idle and self._waiting:
            runs = take_pack(self._waiting, self._pack, len(idle))
            self._begin(idle.pop(0), runs, source.judged, attempt=1)

    def _reporting(self) -> list[Worker]:
        """Waits for workers that have something to say."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready: list[Any] = []
        while not ready:
            self._look()
            ready = wait(list(by_connection), timeout=LOOK_SECONDS)
        return [by_connection[connection] for connection in ready]

    def _look(self) -> None:
        if self._stop.requested:
            raise Interrupted("stopped")

    def _hear(self, worker: Worker, source: Source) -> None:
        report = worker.receive()
        flights = self._flights.get(worker, {})
        match report:
            case Ready():  # of a worker that was started later
                self._welcome(worker, report)
            case Refused(problems=problems, by_user=by_user):
                raise UserError(problems) if by_user else MachineError("; ".join(problems))
            case Recorded(run_id=run_id, record=record):
                self._record(worker, flights[run_id], record, source)
            case Finished(run_id=run_id, outcome=outcome, message=message):
                self._finish(worker, flights[run_id], outcome, message, source)
            case None:
                self._replace(worker, source)
            case _:
                raise AssertionError(f"unexpected report {report!r}")

    def _begin(self, worker: Worker, runs: Sequence[Run], judged: bool, attempt: int) -> None:
        """Writes the headers, tells the sinks and orders the training."""
        flights = [self._open(run, attempt) for run in runs]
        self._flights[worker] = {flight.run.run_id: flight for flight in flights}
        worker.send(Train(runs=tuple(flight.run for flight in flights), judged=judged))

    def _open(self, run: Run, attempt: int) -> _Flight:
        """A run that is about to be trained; one begun before keeps its header."""
        known = self._store.header(run.run_id)
        header = known or RunHeader(
            run=run,
            study=self._study.name,
            wandb_id=new_wandb_id(self._study.name, run.run_id),
            derived=derived(run.hparams),
            num_params=self._num_params,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        flight = _Flight(run=header.run, writer=self._store.begin(header), summary=RunSummary(), attempt=attempt)
        self._wandb.begin(header)
        self._progress.start(header.run)
        return flight

    def _record(self, worker: Worker, flight: _Flight, record: StepRecord, source: Source) -> None:
        flight.writer.append(record)
        flight.summary.add(record)
        self._wandb.log(flight.run.run_id, record)
        self._progress.step(flight.run, record)
        if record.evaluated:
            source.heard(flight.run, record)
            if source.judged and record.eval_index != self._study.spec.evals:
                worker.send(Word(run_id=flight.run.run_id, stop=source.should_stop(flight.run, record)))

    def _abandon(self, flights: Iterable[_Flight]) -> None:
        """Leaves runs without a result."""
        for flight in flights:
            flight.writer.close()
            self._wandb.abandon(flight.run.run_id)

    def _finish(self, worker: Worker, flight: _Flight, outcome: Outcome, message: str, source: Source) -> None:
        result = flight.summary.result(outcome, message)
        del self._flights[worker][flight.run.run_id]
        if not self._flights[worker]:
            del self._flights[worker]
        flight.writer.finish(result)
        self._wandb.finish(flight.run.run_id, result)
        self._progress.finish(flight.run, result)
        source.ended(flight.run, result)

    def _replace(self, dead: Worker, source: Source) -> None:
        """Starts another worker for one that died; its runs begin again, up to ATTEMPTS times."""
        cause = f"the worker died (exit code {dead.stop()}; see {dead.log})"
        if dead not in self._ready:
            raise MachineError(f"{cause} before it was ready: {dead.last_words()}")
        index = self._workers.index(dead)
        worker = self._workers[index] = self._start_worker(index)
        flights = self._flights.pop(dead, {})
        if not flights:
            return
        attempt = max(flight.attempt for flight in flights.values())
        if attempt < ATTEMPTS:
            self._progress.say(
                f"{', '.join(flights)}: {cause}; {'it begins' if len(flights) == 1 else 'they begin'} again"
            )
            self._abandon(flights.values())
            self._begin(worker, [flight.run for flight in flights.values()], source.judged, attempt + 1)
            return
        self._flights[worker] = flights
        for flight in list(flights.values()):
            self._finish(worker, flight, Outcome.FAILED, f"{cause}, {ATTEMPTS} times in a row", source)

    def _start_worker(self, index: int) -> Worker:
        device, num_gpus = self._options.device, (self._environment or {}).get("num_gpus", 0)
        if device in ("auto", "cuda") and num_gpus:
            device = f"cuda:{index % num_gpus}"
        setup = Setup(spec=self._study.spec, device=device, base=Path.cwd())
        return Worker(setup, self._store.root / f"worker-{index}.log")

    def _welcome(self, worker: Worker, report: Ready) -> dict[str, Any]:
        """Freezes the environment with the study's first worker, and holds every later one to it."""
        frozen = self._store.read_json("environment.json")
        if frozen is None:
            self._store.write_json("environment.json", describe(report.environment))
        else:
            refuse_if_changed(frozen, report.environment, self._study.name, str(self._store.root))
        self._ready.add(worker)
        self._environment, self._num_params = report.environment, report.num_params
        return report.environment

    def _pack_size(self) -> int:
        """Runs to train as one: what the study says, or what the first worker measures once per study."""
        wanted = self._study.budget.pack
        if wanted != "auto":
            return wanted
        known: dict[str, float] = self._store.read_json("calibration.json") or {}
        if "pack" not in known:
            hparams = self._study.baseline_hparams(self._study.spec.tokens)

            def step_seconds(size: int) -> float | None:
                speed = measure(self._workers[0], hparams, self._look, pack=size).speed
                return speed.step_seconds if speed else None

            size, gain = best_pack(step_seconds, self._study.budget.parallel)
            known["pack"] = size
            self._store.write_json("calibration.json", known)
            if size > 1:
                self._progress.say(f"pack: {size} trials as one, {gain:.1f}x of one at a time")
            else:
                self._progress.say("pack: one trial at a time, as packing does not pay here")
        return int(known["pack"])

    def _calibrated_tokens(self, hparams: HParams) -> int:
        """The budget in tokens that `seconds` of training buy with this micro-batch, measured once per study.

        Floored to whole batches, at least one, and frozen in calibration.json, so that a resumed study keeps it.
        """
        spec = self._study.spec
        assert spec.seconds is not None
        known: dict[str, float] = self._store.read_json("calibration.json") or {}
        key = f"micro_batch={hparams.micro_batch} batch_tokens={hparams.batch_tokens}"
        if key not in known:
            speed = measure(self._workers[0], hparams, self._look).speed
            if speed is None:
                return hparams.batch_tokens  # one step, which will tell in the run's own result why it failed
            known[key] = hparams.batch_tokens / speed.step_seconds
            self._store.write_json("calibration.json", known)
        return max(1, int(spec.seconds * known[key]) // hparams.batch_tokens) * hparams.batch_tokens


def num_workers(
    study: Study, environment: Mapping[str, Any], options: Options, pack: int, say: Callable[[str], None]
) -> int:
    """Workers to start: as many as asked for; else one per GPU that the device names, or one per `threads` cores.

    One where speed is measured (an objective, or a budget in seconds): trainings side by side would slow each other.
    Never more than there are packs among the trials that may be proposed ahead.
    """
    timed = study.spec.seconds is not None or any(o.metric == "train/tok_per_sec" for o in study.objectives)
    if timed:
        if (options.workers or 1) > 1:
            say("one worker: this study measures speed, and trainings side by side slow each other")
        return 1
    num_gpus = 1 if options.device.startswith("cuda:") else environment["num_gpus"]
    wanted = options.workers or num_gpus or max(1, environment["cores"] // study.spec.threads)
    most = max(1, study.budget.parallel // pack)
    if (options.workers or 0) > most:
        packed = f", {pack} trials a worker" if pack > 1 else ""
        say(f"{most} workers: [budget] parallel is {study.budget.parallel}{packed}")
    return min(wanted, most)


def make_sink(study: Study, store: RunStore, mode: Mode, say: Callable[[str], None]) -> WandbSink:
    """The W&B sink of a study, whose every run has the study's fixed values in its config."""
    project, entity = resolve_project(study.project, study.entity)
    spec = study.spec
    extra = {
        "question": study.question,
        "model": asdict(spec.model),
        "corpus": spec.corpus,
        "tokenizer": spec.tokenizer,
        "context": spec.context,
        "precision": spec.precision,
        "threads": spec.threads,
    }
    return WandbSink(
        mode=mode,
        project=project,
        entity=entity,
        study=study.name,
        directory=store.root,
        extra=extra,
        say=say,
        live=mode == "online",
    )
