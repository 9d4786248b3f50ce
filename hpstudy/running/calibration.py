"""What a study leaves to be measured once on this machine: micro-batch, and the tokens that its seconds buy.

The answers are kept in calibration.json, so that a resumed study uses the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hpstudy.hparams import HParams
from hpstudy.running.executors import time_steps
from hpstudy.running.micro_batch import find_micro_batch
from hpstudy.running.pool import WorkerPool
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

FILE = "calibration.json"


def settle_micro_batch(study: Study, store: RunStore, pool: WorkerPool, say: Callable[[str], None]) -> Study:
    """The study with its micro-batch of "auto" measured."""
    if not study.auto_micro_batch:
        return study
    known = _known(store)
    if "micro_batch" not in known:
        found = pool.measure(
            lambda worker: find_micro_batch(
                study, worker, pool.environment, say, pool.restart_first, pool.raise_if_stopped
            )
        )
        if found.probed:
            pool.restart_first()
        known["micro_batch"] = found.size
        store.write_json(FILE, known)
    return replace(study, micro_batch_limit=int(known["micro_batch"]))


def tokens_for(study: Study, store: RunStore, pool: WorkerPool, hparams: HParams) -> int:
    """The tokens that `seconds` of training process with these hyperparameters: whole batches, at least one."""
    seconds = study.spec.seconds
    assert seconds is not None
    known = _known(store)
    key = f"micro_batch={hparams.micro_batch} batch_tokens={hparams.batch_tokens}"
    if key not in known:
        timed = pool.measure(lambda worker: time_steps(worker, hparams, pool.raise_if_stopped))
        if timed.last:
            pool.restart_first()
        if (step_seconds := timed.median_step) is None:
            return hparams.batch_tokens  # one step, whose run then shows why it failed
        known[key] = hparams.batch_tokens / step_seconds
        store.write_json(FILE, known)
    return max(1, int(seconds * known[key]) // hparams.batch_tokens) * hparams.batch_tokens


def _known(store: RunStore) -> dict[str, float]:
    return store.read_json(FILE) or {}
