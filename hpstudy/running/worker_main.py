"""The worker process: builds a trainer once, trains what it is told, reports every step, writes nothing."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from hpstudy.errors import UserError
from hpstudy.hparams import HParams
from hpstudy.records import Outcome
from hpstudy.running.workers import (
    Finished,
    Measure,
    Measured,
    Ready,
    Recorded,
    Refused,
    Resumed,
    Save,
    Saved,
    Setup,
    Timed,
    TimeSteps,
    Train,
    Word,
)
from hpstudy.training.checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from hpstudy.training.corpus import load_corpus
from hpstudy.training.device import is_out_of_memory, place, prepare_process
from hpstudy.training.divergence import DivergenceWatch
from hpstudy.training.trainer import Trainer

PROBE_STEPS = 3  # timed at each micro-batch that is tried


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
            case Train() as order:
                _train(trainer, order, environment, connection)
            case Save():
                pass  # the run had ended
            case Measure(hparams=hparams, pack=pack):
                connection.send(_measure(trainer, hparams, pack))
            case TimeSteps(hparams=hparams):
                connection.send(_time_steps(trainer, hparams))
            case order:
                raise AssertionError(f"unexpected order {order!r}")


def _build(setup: Setup) -> tuple[Trainer, dict[str, Any]]:
    spec = setup.spec
    prepare_process(spec.threads)
    placement = place(setup.device, spec.precision)
    corpus = load_corpus(spec.corpus, spec.tokenizer, spec.val_tokens, base=setup.base)
    return Trainer(spec, corpus, placement), {**placement.environment(), "corpus_digest": corpus.digest}


def _train(trainer: Trainer, order: Train, environment: dict[str, Any], connection: Connection) -> None:
    """Trains runs and reports every step and every end; whatever happens in it ends the runs and not the worker."""
    ended: set[str] = set()
    outcome, message = Outcome.COMPLETE, ""
    try:
        _stream(trainer, order, environment, connection, ended)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        raise  # the driver is gone
    except Exception as error:
        outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory(error) else Outcome.FAILED
        message = "".join(traceback.format_exception(error)).strip()
    if message:
        torch.cuda.empty_cache()  # after the traceback, which holds tensors: the next run must not depend on this one
    if left := tuple(run.run_id for run in order.runs if run.run_id not in ended):
        connection.send(Finished(run_ids=left, outcome=outcome, message=message))


def _stream(
    trainer: Trainer, order: Train, environment: dict[str, Any], connection: Connection, ended: set[str]
) -> None:
    """Reports every step, and the end of a run that is stopped before its last step, whose id it adds to `ended`."""
    runs, saves = order.runs, list[Save]()
    identity = fingerprint(trainer.spec, runs[0], environment)
    checkpoint = _checkpoint(order, identity, connection) if order.checkpoint else None
    watches = {run.run_id: DivergenceWatch(trainer.vocab_size) for run in runs}
    if checkpoint:
        watches[runs[0].run_id].bad_steps = checkpoint.bad_steps
    warmup_tokens = {run.run_id: run.hparams.warmup_fraction * run.tokens for run in runs}
    for run_id, record in trainer.train(runs, ended, checkpoint, packed=order.packed):
        connection.send(Recorded(run_id=run_id, record=record))
        warming_up = record.tokens <= warmup_tokens[run_id]
        awaited = order.judged and record.evaluated and record.eval_index != trainer.spec.evals
        stop = awaited and _word(connection, run_id, saves)  # first of all, or it would be taken for the next order
        watch = watches[run_id]
        diverged = watch.diverged(loss=record.loss, grad_norm=record.grad_norm, warming_up=warming_up)
        if diverged or stop:
            ended.add(run_id)
            outcome = Outcome.DIVERGED if diverged else Outcome.PRUNED
            connection.send(Finished(run_ids=(run_id,), outcome=outcome, message=""))
            continue
        while connection.poll():
            saves.append(connection.recv())
        if saves and saves[-1].run_id == run_id and (state := trainer.state()) is not None:
            connection.send(_save(saves[-1], Checkpoint(fingerprint=identity, bad_steps=watch.bad_steps, state=state)))
            saves.clear()


def _checkpoint(order: Train, identity: str, connection: Connection) -> Checkpoint | None:
    """The checkpoint to go on from, or None where it cannot be used; says which."""
    assert order.checkpoint is not None
    checkpoint, problem = None, ""
    try:
        found = load_checkpoint(order.checkpoint, identity)
        if found.state.step > order.recorded:
            raise ValueError(f"is after step {found.state.step}, but {order.recorded} steps are recorded")
        checkpoint = found
    except (OSError, ValueError) as error:
        problem = str(error)
    step = checkpoint.state.step if checkpoint else 0
    connection.send(Resumed(run_id=order.runs[0].run_id, step=step, problem=problem))
    return checkpoint


def _save(order: Save, checkpoint: Checkpoint) -> Saved:
    start, problem = time.monotonic(), ""
    try:
        save_checkpoint(order.path, checkpoint)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        problem = str(error).splitlines()[0]
    return Saved(run_id=order.run_id, seconds=time.monotonic() - start, problem=problem)


def _word(connection: Connection, run_id: str, saves: list[Save]) -> bool:
    while isinstance(word := connection.recv(), Save):
        saves.append(word)
    assert isinstance(word, Word)
    assert word.run_id == run_id
    return word.stop


def _measure(trainer: Trainer, hparams: HParams, pack: int) -> Measured:
    try:
        return Measured(speed=trainer.measure(hparams, pack=pack))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    torch.cuda.empty_cache()  # after the traceback, as above
    return Measured(speed=None, message=message)


def _time_steps(trainer: Trainer, hparams: HParams) -> Timed:
    trainer.placement.forget_memory()
    seconds, message = None, ""
    try:
        seconds = min(trainer.time_steps(hparams, PROBE_STEPS))
    except Exception as error:
        message = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
    peak, room = trainer.placement.memory_gib()
    return Timed(step_seconds=seconds, peak_gib=peak, room_gib=room, message=message)


def main() -> None:
    """Entry point of the process: serves the pipe whose file descriptor is the only argument.

    Who takes a machine may signal every process of a study at once. The driver hears it too, and has the last
    checkpoints written.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with (
        Connection(int(sys.argv[1])) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)


if __name__ == "__main__":
    main()
