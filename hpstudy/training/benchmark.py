"""How fast a trainer's steps are beside the device's fastest matrix product, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from statistics import median

import torch

from hpstudy.hparams import HParams
from hpstudy.records import BenchmarkFigures, Run, StepRecord
from hpstudy.training.device import Placement
from hpstudy.training.profile import time_shares
from hpstudy.training.trainer import Trainer

REPEATED_STEPS = 2
PROFILED_SHARE = 0.25  # of a turn's seconds; the profiler's records of a second of small steps take longer to read
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the square matrices


def benchmark(trainer: Trainer, hparams: HParams, *, rounds: int, turn_seconds: float) -> BenchmarkFigures:
    """Alternates matrix products and full-batch steps, each for `turn_seconds`, after a round of warm-up.

    Every rank does both, and the products of all count. Some more steps are profiled at the end.
    """
    far = 10**15  # tokens: neither the end nor an evaluation is reached
    run = Run(run_id="bench", phase="search", trial=None, seed=0, tokens=far, hparams=hparams)
    (first, first_seconds), (again, again_seconds) = (first_steps(trainer, run) for _ in range(2))
    peak_gib = trainer.memory_gib()[0]  # before the products take theirs
    steps, products = trainer.train(run), matrix_products(trainer.placement, PRODUCT_SIZE[trainer.placement.kind])
    paces, fastest = [], 0.0
    for number in range(rounds + 1):
        fastest = max(fastest, *(1 / seconds for seconds in _turn(products, turn_seconds, trainer)))
        taken = _turn(steps, turn_seconds, trainer)
        if number:
            paces.append(len(taken) / sum(taken))

    def profiled() -> float:
        taken = _turn(steps, PROFILED_SHARE * turn_seconds, trainer)
        return len(taken) / median(paces) if trainer.placement.is_cuda else sum(taken)

    return BenchmarkFigures(
        steps_per_second=tuple(paces),
        flops_per_second=trainer.ranks.count * 2 * PRODUCT_SIZE[trainer.placement.kind] ** 3 * fastest,
        peak_gib=peak_gib,
        repeats=first == again,
        cold_start_seconds=max(0.0, first_seconds - again_seconds),
        shares=time_shares(profiled, trainer.placement),
    )


def first_steps(trainer: Trainer, run: Run) -> tuple[list[tuple[float, ...]], float]:
    """(the figures of a run's first two steps, the wall seconds that they took)."""
    start = time.perf_counter()
    figures = [_figures(record) for record in islice(trainer.train(run), REPEATED_STEPS)]
    if trainer.placement.is_cuda:  # a step launched ahead
        torch.cuda.synchronize()
    return figures, time.perf_counter() - start


def _figures(record: StepRecord) -> tuple[float, ...]:
    return record.loss, record.grad_norm, record.update_to_weight


def _turn(work: Iterator[object], budget: float, trainer: Trainer) -> list[float]:
    """Wall seconds of each piece of work until `budget` seconds have passed on rank 0; at least one piece."""
    seconds: list[float] = []
    while trainer.ranks.of_first(sum(seconds) < budget):
        start = time.perf_counter()
        next(work)
        seconds.append(time.perf_counter() - start)
    if trainer.placement.is_cuda:  # a step launched ahead ends in this turn
        start = time.perf_counter()
        torch.cuda.synchronize()
        seconds[-1] += time.perf_counter() - start
    return seconds


def matrix_products(placement: Placement, size: int) -> Iterator[float]:
    """Matrix products of [size, size] in the training's precision, each waited for: the machine's limit in practice."""
    dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=placement.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    while True:
        torch.mm(a, b, out=out)
        yield out[0, 0].item()
