"""What a study will cost, from a few timed steps, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.hparams import HParams
from hpstudy.running.awake import AwakeClock
from hpstudy.running.micro_batch import find
from hpstudy.running.workers import Measure, Measured, Ready, Refused, Setup, Worker
from hpstudy.study import Choices, Study
from hpstudy.training.schedule import plan

START_SECONDS = 600.0  # for a worker to be built, before it counts as hung


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of a study's runs on this machine."""

    runs: int
    steps: int  # of one full run at the baseline's batch
    run_tokens: int  # of one full run
    tokens: int  # of all runs
    seconds: float  # of all runs on one worker; the mean over the micro-batches where they are searched
    speeds: dict[int, Measured]  # by micro-batch
    environment: dict[str, Any]
    num_params: int


def estimate(study: Study, device: str, runs: Sequence[float], log: Path, say: Callable[[str], None]) -> Cost:
    """Times steps of every micro-batch that may occur and adds up; each run is its share of the full budget.

    Raises UserError or MachineError.
    """
    setup = Setup(spec=study.spec, device=device, base=Path.cwd())
    worker = Worker(setup, log)
    try:
        ready = welcome(worker)
        if study.auto_micro_batch:
            found = find(study, worker, ready.environment, say)
            study = replace(study, micro_batch_limit=found.size)
            if found.probed:
                worker.stop()
                worker = Worker(setup, log)
                welcome(worker)
        baseline = study.baseline_hparams(study.spec.tokens)
        dimension = study.space.get("micro_batch")
        sizes = [int(v) for v in dimension.values] if isinstance(dimension, Choices) else [baseline.micro_batch]
        speeds = {size: measure(worker, replace(baseline, micro_batch=size)) for size in sizes}
    finally:
        worker.stop()
    good = [measured.speed for measured in speeds.values() if measured.speed is not None]
    if not good:
        raise MachineError("no step of this study fits or runs here; lower micro_batch, or take a smaller model")
    mean_step = sum(speed.step_seconds for speed in good) / len(good)
    mean_eval = sum(speed.eval_seconds for speed in good) / len(good)
    spec = study.spec
    budget = spec.tokens or math.ceil((spec.seconds or 0.0) / mean_step) * baseline.batch_tokens
    steps = list(plan(baseline, budget=budget, unit=spec.ramp_multiple * spec.context, evals=spec.evals))
    full_batches = steps[-1].tokens / baseline.batch_tokens  # the smaller batches of a ramp cost in proportion
    num_evals = sum(step.eval_index is not None for step in steps)
    return Cost(
        runs=len(runs),
        steps=len(steps),
        run_tokens=steps[-1].tokens,
        tokens=round(steps[-1].tokens * sum(runs)),
        seconds=sum(runs) * full_batches * mean_step + len(runs) * num_evals * mean_eval,
        speeds=speeds,
        environment=ready.environment,
        num_params=ready.num_params,
    )


def welcome(worker: Worker, meanwhile: Callable[[], None] = lambda: None) -> Ready:
    """Waits until a worker is built, START_SECONDS at most. Raises UserError or MachineError when it cannot be."""
    clock = AwakeClock()

    def look() -> None:
        meanwhile()
        if clock.look() > START_SECONDS:
            worker.kill()

    match worker.receive(look):
        case Ready() as ready:
            return ready
        case Refused(problems=problems, by_user=by_user):
            raise UserError(problems) if by_user else MachineError("; ".join(problems))
        case _:
            raise MachineError(f"the worker died before it was ready: {worker.last_words()}; try `hpstudy doctor`")


def measure(worker: Worker, hparams: HParams, meanwhile: Callable[[], None] = lambda: None, pack: int = 1) -> Measured:
    """Times a few steps on an idle worker, of several runs as one where `pack` says so."""
    worker.send(Measure(hparams=hparams, pack=pack))
    report = worker.receive(meanwhile)
    if not isinstance(report, Measured):
        raise MachineError(f"the worker died in its timed steps: {worker.last_words()}")
    return report
