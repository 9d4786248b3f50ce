"""What a study leaves to be measured once on this machine: micro-batch, pack, and the tokens that its seconds buy.

The answers are kept in calibration.json, so that a resumed study uses the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.hparams import HParams
from hpstudy.running.micro_batch import find_micro_batch
from hpstudy.running.packing import best_pack
from hpstudy.running.pool import WorkerPool
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

FILE = "calibration.json"


def settle_micro_batch(
    study: Study, store: RunStore, pool: WorkerPool, environment: Mapping[str, Any], say: Callable[[str], None]
) -> Study:
    """The study with its micro-batch of "auto" measured."""
    if not study.auto_micro_batch:
        return study
    known = _known(store)
    if "micro_batch" not in known:
        found = find_micro_batch(study, pool.first, environment, say, pool.raise_if_stopped)
        if found.probed:
            pool.restart_first()
        known["micro_batch"] = found.size
        store.write_json(FILE, known)
    return replace(study, micro_batch_limit=int(known["micro_batch"]))


def pack_size(study: Study, store: RunStore, pool: WorkerPool, largest: int, say: Callable[[str], None]) -> int:
    """Runs to train as one: what the study states, or for "auto" the fastest size up to `largest`."""
    wanted = study.budget.pack
    if wanted != "auto":
        return wanted
    known = _known(store)
    if "pack" not in known:
        hparams = study.baseline

        def step_seconds(size: int) -> float | None:
            try:
                return pool.first.time_steps(hparams, pool.raise_if_stopped, pack=size).median_step
            except MachineError:
                pool.restart_first()
                return None

        size, gain = best_pack(step_seconds, largest)
        known["pack"] = size
        store.write_json(FILE, known)
        one = "pack: one trial at a time, because packing is not faster here"
        say(f"pack: {size} trials as one, {gain:.1f}x the speed of one at a time" if size > 1 else one)
    return int(known["pack"])


def tokens_for(study: Study, store: RunStore, pool: WorkerPool, hparams: HParams) -> int:
    """The tokens that `seconds` of training process with these hyperparameters: whole batches, at least one."""
    seconds = study.spec.seconds
    assert seconds is not None
    known = _known(store)
    key = f"micro_batch={hparams.micro_batch} batch_tokens={hparams.batch_tokens}"
    if key not in known:
        step_seconds = pool.first.time_steps(hparams, pool.raise_if_stopped).median_step
        if step_seconds is None:
            return hparams.batch_tokens  # one step, whose run then shows why it failed
        known[key] = hparams.batch_tokens / step_seconds
        store.write_json(FILE, known)
    return max(1, int(seconds * known[key]) // hparams.batch_tokens) * hparams.batch_tokens


def _known(store: RunStore) -> dict[str, float]:
    return store.read_json(FILE) or {}
