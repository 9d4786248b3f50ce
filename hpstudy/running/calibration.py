"""What a study leaves to be measured here, once: micro-batch, pack, and the tokens that its seconds buy.

All of it is frozen in calibration.json, so that a resumed study keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.hparams import HParams
from hpstudy.running.cost import measure
from hpstudy.running.crew import Crew
from hpstudy.running.micro_batch import find
from hpstudy.running.packing import best_pack
from hpstudy.study import Study
from hpstudy.tracking.store import RunStore

FILE = "calibration.json"


def settle_micro_batch(
    study: Study, store: RunStore, crew: Crew, environment: Mapping[str, Any], say: Callable[[str], None]
) -> Study:
    """The study with the micro-batch that it leaves open."""
    if not study.auto_micro_batch:
        return study
    known = _known(store)
    if "micro_batch" not in known:
        found = find(study, crew.first, environment, say, crew.look)
        if found.probed:
            crew.restart_first()
        known["micro_batch"] = found.size
        store.write_json(FILE, known)
    return replace(study, micro_batch_limit=int(known["micro_batch"]))


def pack_size(study: Study, store: RunStore, crew: Crew, largest: int, say: Callable[[str], None]) -> int:
    """Runs to train as one: what the study says, or what the first worker measures, at most `largest`.

    Of the trials that may be proposed ahead, a larger pack would leave none to trainings beside it.
    """
    wanted = study.budget.pack
    if wanted != "auto":
        return wanted
    known = _known(store)
    if "pack" not in known:
        hparams = study.baseline_hparams(study.spec.tokens)

        def step_seconds(size: int) -> float | None:
            try:
                speed = measure(crew.first, hparams, crew.look, pack=size).speed
            except MachineError:  # most likely killed by the kernel, as memory ran out
                crew.restart_first()
                return None
            return speed.step_seconds if speed else None

        size, gain = best_pack(step_seconds, largest)
        known["pack"] = size
        store.write_json(FILE, known)
        one = "pack: one trial at a time, as packing does not pay here"
        say(f"pack: {size} trials as one, {gain:.1f}x of one at a time" if size > 1 else one)
    return int(known["pack"])


def tokens_for(study: Study, store: RunStore, crew: Crew, hparams: HParams) -> int:
    """The budget in tokens that `seconds` of training buy with this micro-batch.

    Floored to whole batches, at least one.
    """
    seconds = study.spec.seconds
    assert seconds is not None
    known = _known(store)
    key = f"micro_batch={hparams.micro_batch} batch_tokens={hparams.batch_tokens}"
    if key not in known:
        speed = measure(crew.first, hparams, crew.look).speed
        if speed is None:
            return hparams.batch_tokens  # one step, which will tell in the run's own result why it failed
        known[key] = hparams.batch_tokens / speed.step_seconds
        store.write_json(FILE, known)
    return max(1, int(seconds * known[key]) // hparams.batch_tokens) * hparams.batch_tokens


def _known(store: RunStore) -> dict[str, float]:
    return store.read_json(FILE) or {}
