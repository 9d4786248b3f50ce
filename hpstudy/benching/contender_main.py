"""A contender's process: builds one trainer, then steps for as long as each turn lasts. Its stdin is the connection."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from hpstudy.benching.notebook import train
from hpstudy.benching.peers import build
from hpstudy.benching.race import Built, Job, Turn
from hpstudy.errors import HpstudyError, UserError
from hpstudy.hparams import GPT3
from hpstudy.records import Run
from hpstudy.running.workers import Refused
from hpstudy.spec import TrainerSpec
from hpstudy.training.corpus import load_corpus
from hpstudy.training.device import Placement, place, prepare_process
from hpstudy.training.gpt import VOCAB_MULTIPLE
from hpstudy.training.trainer import Trainer

ENDLESS = 10**15  # tokens
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


def serve(connection: Connection) -> None:
    """The contender's life: build, then take turns until the connection ends."""
    job: Job = connection.recv()
    try:
        placement = place(job.device, "auto")
        built, steps = _build(job, placement)
    except HpstudyError as error:
        problems = error.problems if isinstance(error, UserError) else (str(error),)
        connection.send(Refused(problems=problems, by_user=isinstance(error, UserError)))
        return
    connection.send(built)
    while True:
        connection.send(_turn(steps, connection.recv(), placement))


def _turn(steps: Iterator[object], budget: float, placement: Placement) -> Turn:
    seconds: list[float] = []
    while sum(seconds) < budget:
        start = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - start)
    return Turn(seconds=tuple(seconds), peak_memory_gib=_peak_memory_gib(placement))


def _peak_memory_gib(placement: Placement) -> float:
    if placement.is_cuda:
        return torch.cuda.max_memory_allocated(placement.device) / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _build(job: Job, placement: Placement) -> tuple[Built, Iterator[object]]:
    """What a step of the contender amounts to, and the steps; each has ended on the device when it is yielded."""
    torch.set_num_threads(job.threads)
    if job.contender == "gemm":
        size = GEMM_SIZE[placement.kind]
        return _built(placement, 0, 2 * size**3), _gemm(size, placement)
    setting = job.setting
    corpus = load_corpus("asv", setting.tokenizer, setting.context)
    spec, run = _endless(job, setting.sequences[placement.kind])
    built = _built(placement, run.hparams.batch_tokens, run.hparams.batch_tokens * setting.flops_per_token)
    if job.contender == "hpstudy":
        prepare_process(job.threads)  # as a study's worker is
        return built, Trainer(spec, corpus, placement).train([run])
    padded = -(-corpus.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE  # as hpstudy's model has it
    model, forward = build(job.contender, setting.model, padded, setting.context, placement)
    return built, train(model, forward, spec, run, corpus, placement)


def _built(placement: Placement, tokens: int, flops: int) -> Built:
    return Built(
        device=placement.environment()["device_name"],
        precision=placement.precision,
        tokens_per_step=tokens,
        flops_per_step=flops,
    )


def _gemm(size: int, placement: Placement) -> Iterator[float]:
    """Large square matrix products in the training's precision: the machine's limit in practice."""
    dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=placement.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    while True:
        torch.mm(a, b, out=out)
        yield out[0, 0].item()


def _endless(job: Job, sequences: int) -> tuple[TrainerSpec, Run]:
    """A training whose end, and whose evaluation, no turn reaches."""
    setting = job.setting
    spec = TrainerSpec(
        model=setting.model,
        corpus="asv",
        tokenizer=setting.tokenizer,
        context=setting.context,
        tokens=ENDLESS,
        seconds=None,
        evals=1,
        val_tokens=setting.context,
        seed=0,
        threads=job.threads,
        precision="auto",
        ramp_multiple=1,
    )
    hparams = replace(GPT3, batch_tokens=sequences * setting.context, micro_batch=sequences, batch_ramp_fraction=0.0)
    return spec, Run(run_id="bench", phase="search", trial=None, seed=0, tokens=ENDLESS, hparams=hparams)


def main() -> None:
    """Entry point of the process."""
    with (
        Connection(os.dup(sys.stdin.fileno())) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)


if __name__ == "__main__":
    main()
