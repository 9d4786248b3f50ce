"""`micro_batch = "auto"`: the fastest micro-batch of a study here, probed by a worker or known from before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.running.workers import Timed, TimeSteps, Worker
from hpstudy.study import Study
from hpstudy.training.microbatch import NOTICEABLE, Probe, candidates, choose, climb
from hpstudy.training.shards import cache_dir, write_atomically

DEVICE = ("device", "device_name", "memory_gib", "precision", "threads", "torch")  # what speed and room depend on


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The micro-batch that trains a study fastest on a device."""

    size: int  # sequences
    probed: bool  # by the worker, which then holds the memory of the largest probe and should be replaced


def find(
    study: Study,
    worker: Worker,
    environment: Mapping[str, Any],
    say: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> Found:
    """The answer in hpstudy's cache, or one probed by an idle worker and put there; says which, and why.

    Raises MachineError when no size runs.
    """
    batch, context = study.largest_batch_tokens, study.spec.context
    shape = {"model": asdict(study.spec.model), "vocab_size": study.vocab_size, "context": context}
    machine = {name: environment[name] for name in DEVICE}
    at_once = _trainings_at_once(study, environment)
    key = {**shape, "batch_tokens": batch, "at_once": at_once, **machine, "hpstudy": version("hpstudy")}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    note = cache_dir() / "micro-batch" / f"{digest}.json"
    sizes = candidates(batch // context, context)
    if (known := _read(note, sizes, say)) is not None:
        return Found(size=known, probed=False)

    baseline = replace(study.baseline_hparams(study.spec.tokens), batch_tokens=batch)
    say(f'micro_batch = "auto": timing steps at up to {", ".join(map(str, sizes))} sequences')

    def probe(size: int) -> Probe:
        worker.send(TimeSteps(hparams=replace(baseline, micro_batch=size)))
        report = worker.receive(meanwhile)
        if not isinstance(report, Timed):  # most likely killed by the kernel, as memory ran out
            return Probe(size=size, tok_per_sec=None, message=f"its worker died, {worker.last_words()}")
        return Probe(
            size=size,
            tok_per_sec=report.step_seconds and batch / report.step_seconds,
            peak_gib=report.peak_gib,
            room_gib=report.room_gib / at_once,
            message=report.message,
        )

    probes = climb(sizes, probe)
    size = choose(probes)
    if size is None:
        raise MachineError(f"no micro-batch of this study runs here: {probes[0]}; take a smaller model")
    why = f"the smallest within {NOTICEABLE:.0%} of the fastest of {', '.join(map(str, probes))}"
    write_atomically(note, json.dumps({**key, "micro_batch": size, "why": why}, indent=1).encode())
    say(f"micro_batch: {size}, {why}")
    return Found(size=size, probed=True)


def _trainings_at_once(study: Study, environment: Mapping[str, Any]) -> int:
    """Trainings that share the device's memory, unless --workers says otherwise: one on a GPU, one per `threads` cores.

    No flag is asked, so that none changes the micro-batch.
    """
    if environment["num_gpus"]:
        return 1
    cores: int = environment["cores"]
    return min(study.budget.parallel, max(1, cores // study.spec.threads))


def _read(note: Path, sizes: list[int], say: Callable[[str], None]) -> int | None:
    """The micro-batch that the cache holds; None where it holds none, or, with a line said, none that can be used."""
    if not note.exists():
        return None
    try:
        known = json.loads(note.read_bytes())
        size, why = known["micro_batch"], known["why"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{note} cannot be read ({type(error).__name__}: {error}); the micro-batch is probed again")
        return None
    if size not in sizes:
        say(f"{note} holds micro_batch {size!r}, which is none of {sizes}; the micro-batch is probed again")
        return None
    say(f"micro_batch: {size}, {why}; known from before")
    return int(size)
