"""The worker process: builds a trainer once, trains what it is told, reports every step, writes nothing."""

from __future__ import annotations

import contextlib
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from hpstudy.errors import UserError
from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Run
from hpstudy.running.workers import Finished, Measure, Measured, Ready, Recorded, Refused, Setup, Train, Word
from hpstudy.training.corpus import load_corpus
from hpstudy.training.device import place, prepare_process
from hpstudy.training.divergence import DivergenceWatch
from hpstudy.training.trainer import Trainer


def serve(connection: Connection) -> None:
    """The worker's life: build, then obey until the pipe ends."""
    setup: Setup = connection.recv()
    try:
        trainer, environment = _build(setup)
    except Exception as error:
        problems = error.problems if isinstance(error, UserError) else (f"{type(error).__name__}: {error}",)
        connection.send(Refused(problems=problems, by_user=isinstance(error, UserError)))
        return
    connection.send(Ready(environment=environment, num_params=trainer.num_params))
    while True:
        match connection.recv():
            case Train(runs=runs, judged=judged):
                _train(trainer, runs, judged, connection)
            case Measure(hparams=hparams, pack=pack):
                connection.send(_measure(trainer, hparams, pack))
            case order:
                raise AssertionError(f"unexpected order {order!r}")


def _build(setup: Setup) -> tuple[Trainer, dict[str, Any]]:
    spec = setup.spec
    prepare_process(spec.threads)
    placement = place(setup.device, spec.precision)
    corpus = load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens, base=setup.base)
    return Trainer(spec, corpus, placement), {**placement.environment(), "corpus_digest": corpus.digest}


def _train(trainer: Trainer, runs: tuple[Run, ...], judged: bool, connection: Connection) -> None:
    """Trains runs and reports every step and every end; whatever happens in it ends the runs and not the worker."""
    ended: set[str] = set()
    outcome, message = Outcome.COMPLETE, ""
    try:
        _stream(trainer, runs, judged, connection, ended)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        raise  # the driver is gone
    except Exception as error:
        outcome = Outcome.OUT_OF_MEMORY if _is_out_of_memory(error) else Outcome.FAILED
        message = "".join(traceback.format_exception(error)).strip()
        torch.cuda.empty_cache()  # whether the next run fits must not depend on this one; nothing without a GPU
    for run in runs:
        if run.run_id not in ended:
            connection.send(Finished(run_id=run.run_id, outcome=outcome, message=message))


def _stream(trainer: Trainer, runs: tuple[Run, ...], judged: bool, connection: Connection, ended: set[str]) -> None:
    """Reports every step, and the end of a run that is stopped before its last step, whose id it adds to `ended`."""
    watches = {run.run_id: DivergenceWatch(trainer.vocab_size) for run in runs}
    warmup_tokens = {run.run_id: run.hparams.warmup_fraction * run.tokens for run in runs}
    for run_id, record in trainer.train(runs, stopped=ended):
        connection.send(Recorded(run_id=run_id, record=record))
        warming_up = record.tokens <= warmup_tokens[run_id]
        awaited = judged and record.evaluated and record.eval_index != trainer.spec.evals
        stop = awaited and _word(connection, run_id)  # first of all, or the word would be taken for the next order
        diverged = watches[run_id].diverged(loss=record.loss, grad_norm=record.grad_norm, warming_up=warming_up)
        if diverged or stop:
            ended.add(run_id)
            outcome = Outcome.DIVERGED if diverged else Outcome.PRUNED
            connection.send(Finished(run_id=run_id, outcome=outcome, message=""))


def _word(connection: Connection, run_id: str) -> bool:
    word: Word = connection.recv()
    assert word.run_id == run_id
    return word.stop


def _measure(trainer: Trainer, hparams: HParams, pack: int) -> Measured:
    try:
        return Measured(speed=trainer.measure(hparams, pack=pack))
    except Exception as error:
        return Measured(speed=None, message=f"{type(error).__name__}: {error}")


def _is_out_of_memory(error: Exception) -> bool:
    # the CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def main() -> None:
    """Entry point of the process: serves the pipe whose file descriptor is the only argument."""
    with (
        Connection(int(sys.argv[1])) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)


if __name__ == "__main__":
    main()
