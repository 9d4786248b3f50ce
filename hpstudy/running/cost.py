"""What a study will cost, from a few timed steps, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from hpstudy.errors import MachineError, UserError
from hpstudy.running.executors import Executor, Worker, time_steps, wait_until_ready
from hpstudy.running.messages import Setup, Timed
from hpstudy.running.micro_batch import find_micro_batch
from hpstudy.schedule import extent
from hpstudy.spec import MAX_STEPS, TrainerSpec
from hpstudy.study import Choices, Study

EVAL_GOAL = 0.2  # of a run's time; what evaluations should take at most
LEAST_EVALS = 5  # a curve and a pruner need some
LEAST_VAL_TOKENS = 8192  # fewer measure the loss too coarsely


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of a study's runs on this machine."""

    runs: int
    steps: int  # of one full run at the baseline's batch
    run_tokens: int  # of one full run
    tokens: int  # of all runs
    train_seconds: float  # of one full run's steps; the mean over the micro-batches if they are searched
    eval_seconds: float  # of one run's evaluations
    timed: dict[int, Timed]  # by micro-batch
    environment: dict[str, Any]
    num_params: int

    @property
    def eval_share(self) -> float:
        """The share of a full run's time that evaluation takes."""
        return self.eval_seconds / (self.train_seconds + self.eval_seconds)

    def seconds(self, phases: Iterable[Sequence[float]], workers: int) -> float:
        """Of phases of runs, each as shares of the full budget, on so many workers. A phase waits for its last run."""
        rounds = (math.ceil(len(shares) / workers) * self._run_seconds(mean(shares)) for shares in phases if shares)
        return sum(rounds)

    def _run_seconds(self, share: float) -> float:
        return share * self.train_seconds + self.eval_seconds


def estimate(study: Study, device: str, runs: Sequence[float], executor: Executor, say: Callable[[str], None]) -> Cost:
    """Times steps at every micro-batch that may occur, and adds up. `runs` are shares of the full budget.

    Raises UserError or MachineError if no worker can be built or no step runs.
    """
    setup = Setup(spec=study.spec, device=device, base=Path.cwd())
    worker = executor.start(setup, 0)

    def another() -> Worker:
        nonlocal worker
        executor.stop([worker])
        worker = executor.start(setup, 0)
        wait_until_ready(worker)
        return worker

    try:
        ready = wait_until_ready(worker)
        if study.auto_micro_batch:
            found = find_micro_batch(study, worker, ready.environment, say, another)
            study = replace(study, micro_batch_limit=found.size)
            if found.probed:
                another()
        baseline = study.baseline
        dimension = study.space.get("micro_batch")
        sizes = [int(v) for v in dimension.values] if isinstance(dimension, Choices) else [baseline.micro_batch]
        timed, ended = dict[int, Timed](), False
        for size in sizes:
            idle = another() if ended else worker
            timed[size] = time_steps(idle, replace(baseline, micro_batch=size), evaluate=True)
            ended = timed[size].last
    finally:
        executor.stop([worker])
    steps_seconds = [step for found in timed.values() if (step := found.median_step) is not None]
    evals_seconds = [found.eval_seconds for found in timed.values() if found.eval_seconds is not None]
    if not steps_seconds:
        raise MachineError("no step of this study fits or runs here; lower micro_batch, or take a smaller model")
    mean_step, mean_eval = mean(steps_seconds), mean(evals_seconds)
    spec = study.spec
    budget = spec.tokens or math.ceil((spec.seconds or 0.0) / mean_step) * baseline.batch_tokens
    if (most := budget // baseline.batch_tokens) > MAX_STEPS:
        raise UserError(
            f"[trainer] seconds: a run may hold at most {MAX_STEPS:,} steps, but would have {most:,} here; lower it"
        )
    steps, run_tokens = extent(baseline, budget=budget, unit=spec.ramp_unit)
    full_batches = run_tokens / baseline.batch_tokens  # smaller batches of a ramp cost in proportion
    return Cost(
        runs=len(runs),
        steps=steps,
        run_tokens=run_tokens,
        tokens=round(run_tokens * sum(runs)),
        train_seconds=full_batches * mean_step,
        eval_seconds=min(steps, spec.evals) * mean_eval,
        timed=timed,
        environment=ready.environment,
        num_params=ready.num_params,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheaper:
    """Values of [trainer] that make evaluation cheaper."""

    values: dict[str, int]
    eval_share: float  # of a run's time, with them

    def __str__(self) -> str:
        """`evals = 5 and val_tokens = 32768`."""
        return " and ".join(f"{key} = {value}" for key, value in self.values.items())


def cheaper(cost: Cost, spec: TrainerSpec) -> Cheaper | None:
    """Values of [trainer] with which evaluation takes EVAL_GOAL of a run, or comes near; None if it takes no more.

    Fewer evaluations come first, down to LEAST_EVALS; then a smaller validation set, down to LEAST_VAL_TOKENS.
    """
    evals = min(cost.steps, spec.evals)
    allowed = EVAL_GOAL / (1 - EVAL_GOAL) * cost.train_seconds / (cost.eval_seconds / evals)  # of today's size
    fewer = min(evals, max(LEAST_EVALS, math.floor(allowed)))
    least = min(max(LEAST_VAL_TOKENS, spec.context), spec.val_tokens)
    smaller = max(least, 2 ** math.floor(math.log2(spec.val_tokens * min(allowed / fewer, 1.0))))
    values = {"evals": fewer} if fewer < evals else {}
    if allowed < fewer and smaller < spec.val_tokens:
        values["val_tokens"] = smaller
    then = cost.eval_seconds * fewer / evals * values.get("val_tokens", spec.val_tokens) / spec.val_tokens
    return Cheaper(values=values, eval_share=then / (cost.train_seconds + then)) if values else None
