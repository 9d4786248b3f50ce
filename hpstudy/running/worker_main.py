"""The worker process: builds a trainer once, trains as ordered, and reports every step.

It writes no files but the checkpoints that the driver orders.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from dataclasses import replace
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from hpstudy.data.corpus import corpus_of
from hpstudy.errors import UserError
from hpstudy.processes import follow_parent
from hpstudy.records import Outcome
from hpstudy.running import messages
from hpstudy.running.group import Joined, Line, serve_first, serve_other
from hpstudy.training.benchmark import benchmark
from hpstudy.training.checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from hpstudy.training.device import is_out_of_memory, place, prepare_process
from hpstudy.training.divergence import DivergenceWatch
from hpstudy.training.ranks import ALONE, PeerLost
from hpstudy.training.trainer import Trainer

OUT_OF_MEMORY = "out of memory"  # the message of timed steps that ran out of it


def serve(connection: Connection) -> None:
    """Builds the trainer, then obeys orders until the pipe ends: as a training's only rank, or as one of several."""
    order = connection.recv()
    if isinstance(order, messages.Join):
        serve_other(connection, order, _serve)
    elif order.spec.ranks > 1:
        serve_first(connection, order, _serve)
    else:
        _serve(connection, order, lambda _: ALONE)


def _serve(line: Line, setup: messages.Setup, joined: Joined) -> None:
    """Builds the trainer, then obeys orders, until one fails after which the process is of no use; see `_ends`."""
    try:
        trainer, environment = _build(setup, joined)
    except PeerLost:
        raise
    except Exception as error:
        problems = error.problems if isinstance(error, UserError) else (_short(error),)
        line.send(messages.Refused(problems=problems, by_user=isinstance(error, UserError)))
        return
    line.send(messages.Ready(environment=environment, num_params=trainer.num_params))
    report: messages.Report
    while True:
        match line.recv():
            case messages.Train() as order:
                report = train(trainer, order, environment, line)
            case messages.Save():
                continue  # the run has ended
            case messages.TimeSteps() as order:
                report = time_steps(trainer, order)
            case messages.Benchmark() as order:
                report = _benchmark(trainer, order)
            case order:
                raise AssertionError(f"unexpected order {order!r}")
        ends = _ends(trainer, report)
        if isinstance(report, messages.Finished | messages.Timed):
            report = replace(report, last=ends)
        line.send(report)
        if ends:
            return


def _ends(trainer: Trainer, report: messages.Report) -> bool:
    """Whether the process ends with a report of failure.

    Ranks may have failed at different steps. A GPU's error may stay with the process and fail every later run.
    """
    if not trainer.ranks.alone:
        return messages.failed(report)
    match report:
        case messages.Finished(outcome=outcome):
            return trainer.placement.is_cuda and outcome is Outcome.FAILED
        case messages.Timed(message=message):
            return trainer.placement.is_cuda and message not in ("", OUT_OF_MEMORY)
        case _:
            return False


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _build(setup: messages.Setup, joined: Joined) -> tuple[Trainer, dict[str, Any]]:
    spec = setup.spec
    prepare_process(spec.threads)
    placement = place(setup.device, spec.precision, deterministic=spec.deterministic)
    corpus = corpus_of(spec, setup.base, source=setup.source)
    trainer = Trainer(spec, corpus, placement, ranks=joined(placement))
    environment = placement.environment()
    if len({kind for (kind,) in trainer.ranks.gather(crc32(environment["device_name"].encode()))}) > 1:
        raise UserError("[trainer] gpus: those of one training must be of one kind; name the first by --device cuda:N")
    trained_by = {"ranks": spec.ranks, "corpus_digest": corpus.digest, "code_sha256": _code_sha256()}
    return trainer, {**environment, **trained_by}


def _code_sha256() -> str:
    """The hash of the hpstudy that trains here."""
    package = Path(__file__).parents[1]
    code = sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return code.hexdigest()


def train(trainer: Trainer, order: messages.Train, environment: dict[str, Any], line: Line) -> messages.Finished:
    """Trains a run, reports every step, and returns how it ended. An exception ends the run, not the worker."""
    message = ""
    try:
        outcome = _stream(trainer, order, environment, line)
    except (BrokenPipeError, ConnectionResetError, EOFError, PeerLost):
        raise  # the driver or another rank is gone
    except Exception as error:
        outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory(error) else Outcome.FAILED
        message = "".join(traceback.format_exception(error)).strip()
    if message:
        torch.cuda.empty_cache()  # here, after the traceback and its tensors are gone, for the next run
    return messages.Finished(outcome=outcome, message=message)


def _stream(trainer: Trainer, order: messages.Train, environment: dict[str, Any], line: Line) -> Outcome:
    """Reports every step, and returns how the run ended."""
    saves = list[messages.Save]()
    identity = fingerprint(trainer.spec, order.run, environment)
    checkpoint = None
    if order.checkpoint:
        checkpoint = _checkpoint(order, identity, line)
        steps = {step for (step,) in trainer.ranks.gather(checkpoint.state.step if checkpoint else 0)}
        if len(steps) > 1:
            raise RuntimeError(f"the ranks found checkpoints of different steps: {sorted(steps)}")
    watch = DivergenceWatch(order.run, trainer.vocab_size)
    if checkpoint:
        watch.bad_steps = checkpoint.bad_steps
    for record in trainer.train(order.run, checkpoint):
        # report the step, and wait for the pruner if the order says so
        line.send(messages.Recorded(record=record))
        awaited = order.awaits_decision and record.may_be_pruned(trainer.spec.evals)
        stop = awaited and _stop_decision(line, saves)

        # stop what has diverged or is pruned
        if watch.diverged(record):
            return Outcome.DIVERGED
        if stop:
            return Outcome.PRUNED

        # save a checkpoint when ordered
        while line.poll():
            order_now = line.recv()
            assert isinstance(order_now, messages.Save)
            saves.append(order_now)
        if saves and (state := trainer.state()) is not None:
            line.send(_save(saves[-1], Checkpoint(fingerprint=identity, bad_steps=watch.bad_steps, state=state)))
            saves.clear()
    return Outcome.COMPLETE


def _checkpoint(order: messages.Train, identity: str, line: Line) -> Checkpoint | None:
    """The checkpoint to resume from, or None if it cannot be used. Reports which."""
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
    line.send(messages.Resumed(step=step, problem=problem))
    return checkpoint


def _save(order: messages.Save, checkpoint: Checkpoint) -> messages.Saved:
    start, problem = time.monotonic(), ""
    try:
        save_checkpoint(order.path, checkpoint)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        problem = str(error).splitlines()[0]
    return messages.Saved(step=checkpoint.state.step, seconds=time.monotonic() - start, problem=problem)


def _stop_decision(line: Line, saves: list[messages.Save]) -> bool:
    """Waits for the driver's decision. Orders to save that arrive before it are kept in `saves`."""
    while isinstance(order := line.recv(), messages.Save):
        saves.append(order)
    assert isinstance(order, messages.StopDecision)
    return order.stop


def time_steps(trainer: Trainer, order: messages.TimeSteps) -> messages.Timed:
    """Times steps and, if ordered, an evaluation."""
    trainer.placement.forget_memory()
    steps, evaluation, message = list[float](), None, ""
    try:
        steps = trainer.time_steps(order.hparams, order.steps)
        evaluation = trainer.time_evaluation() if order.evaluate else None
    except PeerLost:
        raise
    except Exception as error:
        message = OUT_OF_MEMORY if is_out_of_memory(error) else _short(error)
    if message:
        torch.cuda.empty_cache()  # here, as in `train`
    peak, room = (trainer.placement if message else trainer).memory_gib()
    return messages.Timed(
        step_seconds=() if message else tuple(steps),
        eval_seconds=evaluation,
        peak_gib=peak,
        room_gib=room,
        message=message,
    )


def _benchmark(trainer: Trainer, order: messages.Benchmark) -> messages.Benchmarked:
    try:
        return messages.Benchmarked(
            figures=benchmark(trainer, order.hparams, rounds=order.rounds, turn_seconds=order.turn_seconds)
        )
    except PeerLost:
        raise
    except Exception as error:
        return messages.Benchmarked(figures=None, message=_short(error))


def main() -> None:
    """Serves the pipe whose file descriptor is the only argument."""
    follow_parent()  # which gets the signals too, and orders last checkpoints
    with (
        Connection(int(sys.argv[1])) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)
