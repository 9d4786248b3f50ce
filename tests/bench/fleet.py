"""Measures the driver with many workers: `python -m tests.bench.fleet` prints what it takes in and where time goes.

Worker pool, search, run store and the order of writing are hpstudy's own, in one process. The workers are made up: each
answers an order at once, at its own made-up speed, with the losses of tests/bench/load.py. So the driver never waits,
and the figures are what it can do at most. W&B is left out: it has a thread and a queue of its own.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np

from hpstudy.records import Outcome, Run, RunResult
from hpstudy.running.executors import Ending, Worker
from hpstudy.running.interface import Interrupted, Options, StopRequest
from hpstudy.running.messages import Finished, Order, Ready, Recorded, Report, Save, Saved, Setup, StopDecision, Train
from hpstudy.running.pool import WorkerPool
from hpstudy.running.run_queue import TrialQueue
from hpstudy.search import JOURNAL, Search
from hpstudy.study import Study, load_study
from hpstudy.tracking.store import RunStore, RunWriter
from hpstudy.tracking.wandb_sink import sink_for
from tests.bench.load import EVALS, record
from tests.helpers.made_up import MACHINE
from tests.helpers.running import Watch
from tests.helpers.tiny import TINY

ENVIRONMENT = MACHINE | {"num_gpus": 0, "code_sha256": "made up"}
MADE_UP = "made-up workers"
PARTS: dict[str, list[tuple[type, str]]] = {
    "store, steps": [(RunWriter, "append")],
    "store, the rest of a run": [
        (RunStore, "begin"),
        (RunStore, "header"),
        (RunStore, "result"),
        (RunWriter, "finish"),
    ],
    "search, evaluations": [(TrialQueue, "on_step"), (TrialQueue, "should_stop")],
    "search, results and proposals": [(TrialQueue, "next"), (TrialQueue, "on_result")],
}
"""The methods whose time counts as a part of the driver's; the rest of it is the pool's."""


class MadeUpWorker:
    """A worker that reports the steps of a run one after another, each after its time on a made-up clock."""

    place, waits = "", False
    pace = 1.0  # seconds of a step, about

    def __init__(self, number: int, steps: int, fleet: Fleet) -> None:
        self.number, self._steps, self._fleet = number, steps, fleet
        self._reports: deque[Report] = deque([Ready(environment=ENVIRONMENT, num_params=1000)])
        self._train: Train | None = None
        self._step, self._stop = 0, False

    def send(self, order: Order) -> None:
        """Takes an order; its report is there at once, or after the next step."""
        match order:
            case Train():
                self._train, self._step, self._stop = order, 0, False
                self._fleet.wake(self)
            case StopDecision(stop=stop):
                self._stop = stop
            case Save():
                self._reports.append(Saved(step=self._step, seconds=0.0, problem=""))
            case _:
                raise AssertionError(order)

    def receive(self, meanwhile: Callable[[], None] = lambda: None) -> Report | None:
        """A report that waits, else the next step, else the end of the run."""
        if self._reports:
            report = self._reports.popleft()
        else:
            assert self._train is not None
            if self._stop or self._step == self._steps:
                return Finished(outcome=Outcome.PRUNED if self._stop else Outcome.COMPLETE, message="")
            self._step += 1
            report = Recorded(record=record(self._train.run, self._step, self._steps))
        if self._train is not None:
            self._fleet.wake(self)
        return report

    def kill(self) -> None:
        """Is never needed."""

    def last_words(self) -> Ending:
        """Is never asked for."""
        raise AssertionError


class Fleet:
    """An executor of made-up workers. Whichever is first on the made-up clock is heard alone: the costliest case."""

    grows = False

    def __init__(self, size: int, steps: int) -> None:
        self._size, self._steps, self._chance = size, steps, Random(0)
        self._now, self._count = 0.0, 0
        self._next: list[tuple[float, int, MadeUpWorker]] = []  # when each reports again

    def wake(self, worker: MadeUpWorker) -> None:
        """Lets a worker report after its next step."""
        self._count += 1
        heapq.heappush(self._next, (self._now + worker.pace * self._chance.uniform(0.5, 1.5), self._count, worker))

    def start(self, setup: Setup, number: int) -> MadeUpWorker:
        """See `Executor`."""
        worker = MadeUpWorker(number, self._steps, self)
        self.wake(worker)
        return worker

    def heard(self, seconds: float) -> Sequence[Worker]:
        """See `Executor`."""
        if not self._next:
            return []
        self._now, _, worker = heapq.heappop(self._next)
        return [worker]

    def places(self, here: int) -> int:
        """See `Executor`."""
        return self._size

    def avoid(self, worker: Worker) -> bool:
        """See `Executor`."""
        return False

    def close(self) -> None:
        """See `Executor`."""

    def room(self) -> str:
        """See `Executor`."""
        return ""

    def stop(self, workers: Sequence[Worker]) -> None:
        """See `Executor`."""


@dataclass
class Figures(Watch):
    """What was measured so far. As a progress view it notes when each run ends."""

    stop: StopRequest
    until: float  # when the study is stopped
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by part
    longest: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # one call of each part
    asks: list[float] = field(default_factory=list)  # seconds that each proposal took
    records: int = 0
    ended: list[float] = field(default_factory=list)  # when each run ended
    memory: list[float] = field(default_factory=list)  # of this process at the start and at the end of each run, MiB

    def __post_init__(self) -> None:
        super().__init__(self._count)
        self.memory.append(memory_mib())

    def _count(self, *_: object) -> None:
        self.records += 1

    def finish(self, run: Run, result: RunResult) -> None:
        """See `Progress`."""
        self.ended.append(time.perf_counter())
        self.memory.append(memory_mib())
        self.stop.requested = time.perf_counter() > self.until

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Times each method of PARTS, what the made-up workers do, and each proposal."""
        made_up = [(Fleet, "heard"), (MadeUpWorker, "send"), (MadeUpWorker, "receive")]
        with ExitStack() as patches:
            for part, methods in {**PARTS, MADE_UP: made_up}.items():
                for owner, name in methods:
                    patches.enter_context(patch.object(owner, name, self._timed(part, getattr(owner, name))))
            patches.enter_context(patch.object(Search, "ask", self._asking(Search.ask)))
            yield

    def _timed(self, part: str, method: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.seconds[part] += taken
                self.longest[part] = max(self.longest[part], taken)

        return timed

    def _asking(self, ask: Callable[..., object]) -> Callable[..., object]:
        def timed(search: Search) -> object:
            start = time.perf_counter()
            proposal = ask(search)
            if proposal is not None:
                self.asks.append(time.perf_counter() - start)
            return proposal

        return timed


def memory_mib() -> float:
    """What this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def fleet_study(folder: Path, *, workers: int, sampler: str = "tpe", pruner: str = "none") -> Study:
    """A study of two hyperparameters that may propose as many trials ahead as there are workers."""
    text = TINY.format(more=f'pruner = {{ name = "{pruner}" }}').replace("parallel = 2", f"parallel = {workers}")
    path = folder / "fleet.toml"
    path.write_text(text.replace('"tpe", startup = 2', f'"{sampler}", startup = 10'))
    return load_study(str(path))


def run_fleet(
    study: Study, store: RunStore, *, workers: int, trials: int, steps: int, limit: float = math.inf
) -> tuple[Figures, float]:
    """Trains every trial, or as many as end within `limit` seconds. Returns the figures and the seconds in all."""
    store.create()
    stop = StopRequest()
    figures = Figures(stop, time.perf_counter() + limit)
    options = Options(runs=store.root.parent, device="cpu", wandb="disabled", workers=workers, trials=trials)
    sink = sink_for(study, store.root, "disabled", figures.say)
    fleet = Fleet(workers, steps)
    pool = WorkerPool(study, store, sink, options, figures, stop, fleet)
    pool.first()
    with figures.measuring():
        start = time.perf_counter()
        search = Search(study, store.root / JOURNAL, trials=trials)
        with suppress(Interrupted):
            pool.train(TrialQueue(study, search, lambda _: 0))
    return figures, figures.ended[-1] - start


def described(figures: Figures, seconds: float, store: RunStore) -> Iterator[str]:
    """The lines of the report."""
    runs, records = len(figures.ended), figures.records
    driver = seconds - figures.seconds[MADE_UP]
    yield f"{runs:,} trials, {records:,} records in {seconds:.0f} s, of which {driver:.0f} s are the driver's"
    yield f"{records / driver:,.0f} records and {runs / driver:,.1f} trials a second of the driver"
    first, last = (1000 * float(np.median(part)) for part in (figures.asks[:100], figures.asks[-100:]))
    yield f"a proposal: {first:.1f} ms at first, {last:.1f} ms at last, {1000 / last:,.0f} a second"
    parts = {part: figures.seconds[part] for part in PARTS}
    parts["pool, progress and the rest"] = driver - sum(parts.values())
    for part, taken in parts.items():
        at_most = f", {1000 * figures.longest[part]:,.1f} ms at most" if part in figures.longest else ""
        yield f"{part:<30} {1e6 * taken / records:7.1f} µs a record, {1000 * taken / runs:7.2f} ms a trial{at_most}"
    start, middle, end = figures.memory[0], figures.memory[runs // 2], figures.memory[-1]
    yield f"memory: {start:.0f} MiB at the start, {middle:.0f} in the middle, {end:.0f} at the end"
    looks = []
    for _ in range(2):
        began = time.perf_counter()
        store.runs()
        looks.append(time.perf_counter() - began)
    yield f"a look at the run store: {looks[0]:.2f} s, then {looks[1]:.2f} s"
    yield f"it takes longest over: {max(parts, key=lambda part: parts[part])}"


def main() -> None:
    """Prints what the driver takes in, where its time goes, and its memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, default=1000, metavar="N", help="workers at once (1000)")
    parser.add_argument("--trials", type=int, default=20_000, metavar="N", help="trials of the search (20000)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help=f"steps of a run, by {EVALS} (20)")
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="stops after so many (10)")
    parser.add_argument("--sampler", default="tpe", metavar="NAME", help="tpe, random, qmc or gp (tpe)")
    parser.add_argument("--pruner", default="none", metavar="NAME", help="none, median or successive_halving (none)")
    args = parser.parse_args()
    if args.steps % EVALS:
        parser.error(f"--steps must be a multiple of {EVALS}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = fleet_study(folder, workers=args.workers, sampler=args.sampler, pruner=args.pruner)
        store = RunStore(folder / "fleet")
        size = {"workers": args.workers, "trials": args.trials, "steps": args.steps}
        figures, seconds = run_fleet(study, store, **size, limit=60 * args.minutes)
        print(f"{args.workers:,} workers, {args.sampler}, pruner {args.pruner}")
        for line in described(figures, seconds, store):
            print(line, flush=True)


if __name__ == "__main__":
    main()
