"""A contender's process: builds one trainer, then steps in its turns. Its stdin is the connection."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from hpstudy.data.corpus import load_corpus
from hpstudy.errors import HpstudyError, UserError
from hpstudy.records import Run
from hpstudy.running.messages import Refused
from hpstudy.spec import TrainerSpec
from hpstudy.system import peak_gib
from hpstudy.training.benchmark import PRODUCT_SIZE, first_steps, matrix_products
from hpstudy.training.device import Placement, is_out_of_memory, place, prepare_process
from hpstudy.training.gpt import VOCAB_MULTIPLE
from hpstudy.training.trainer import Trainer
from tests.bench import recipe
from tests.bench.notebook import train
from tests.bench.peers import build
from tests.bench.race import FUSED_FP32, Built, DoesNotFit, Job, Turn

ENDLESS = 10**15  # tokens
UNFUSED = 4  # memory of logits that leave compiled code, as a multiple of logits that stay in it


def serve(connection: Connection) -> None:
    """Builds the trainer, then takes turns until the connection ends."""
    job: Job = connection.recv()
    try:
        placement = place(job.device, "fp32" if job.contender == FUSED_FP32 else "auto")
        built, steps = _build(job, placement)
    except HpstudyError as error:
        problems = error.problems if isinstance(error, UserError) else (str(error),)
        connection.send(Refused(problems=problems, by_user=isinstance(error, UserError)))
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        connection.send(DoesNotFit())
        return
    connection.send(built)
    while True:
        budget = connection.recv()
        try:
            turn = _turn(steps, budget, placement)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            connection.send(DoesNotFit())
            return
        connection.send(turn)


def _turn(steps: Iterator[object], budget: float, placement: Placement) -> Turn:
    seconds: list[float] = []
    while sum(seconds) < budget:
        start = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - start)
    if placement.is_cuda:  # a step that hpstudy launched ahead must end in this turn
        start = time.perf_counter()
        torch.cuda.synchronize()
        seconds[-1] += time.perf_counter() - start
        torch.cuda.empty_cache()  # for the other contenders
    return Turn(seconds=tuple(seconds), peak_memory_gib=_peak_memory_gib(placement))


def _peak_memory_gib(placement: Placement) -> float:
    if placement.is_cuda:
        return torch.cuda.max_memory_allocated(placement.device) / 2**30
    return peak_gib()


def _build(job: Job, placement: Placement) -> tuple[Built, Iterator[object]]:
    """(the size of a contender's step, its steps). A step may return before the device has finished it."""
    torch.set_num_threads(job.threads)
    if job.contender == "gemm":
        size = PRODUCT_SIZE[placement.kind]
        return _built(placement, 0, 2 * size**3), matrix_products(placement, size)
    setting = job.setting
    corpus = load_corpus("asv", setting.tokenizer, setting.context)
    spec, run = _endless(job, placement.kind)
    built = _built(placement, run.hparams.batch_tokens, run.hparams.batch_tokens * setting.flops_per_token)
    if job.contender == "hpstudy":
        prepare_process(job.threads)  # as in a worker
        trainer = Trainer(spec, corpus, placement)
        (first, _), (again, _) = (first_steps(trainer, run) for _ in range(2))
        return replace(built, repeats=first == again), trainer.train(run)
    padded = -(-corpus.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE  # as in hpstudy's model
    if job.contender == "build-nanogpt":
        recipe_model = recipe.build(setting.model, padded, setting.context, placement)
        return built, recipe.train(recipe_model, spec, run, corpus, placement)
    model, forward = build(job.contender, setting.model, padded, setting.context, placement)
    fused = placement.is_cuda or job.contender == FUSED_FP32
    return built, train(model, forward, spec, run, corpus, placement, fused=fused)


def _built(placement: Placement, tokens: int, flops: int) -> Built:
    return Built(
        device=placement.environment()["device_name"],
        precision=placement.precision,
        tokens_per_step=tokens,
        flops_per_step=flops,
    )


def _endless(job: Job, kind: str) -> tuple[TrainerSpec, Run]:
    """A training so long that no turn reaches its end or an evaluation."""
    setting = job.setting
    hparams = setting.hparams(kind)
    whole = hparams.micro_batch == setting.sequences[kind]
    if kind == "cuda" and not whole and job.contender not in ("hpstudy", "build-nanogpt"):
        hparams = replace(hparams, micro_batch=hparams.micro_batch // UNFUSED)  # all contenders share the GPU's memory
    run = Run(run_id="bench", phase="search", trial=None, seed=0, tokens=ENDLESS, hparams=hparams)
    return setting.spec(job.threads), run


def main() -> None:
    """Serves the connection until it ends."""
    with (
        Connection(os.dup(sys.stdin.fileno())) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)


if __name__ == "__main__":
    main()
