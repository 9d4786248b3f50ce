"""`micro_batch = "auto"`: the fastest micro-batch of a study on this device, measured or known from before.

Sizes are tried upwards, a few whole steps each, until memory or speed says stop. At a fixed batch the micro-batch
changes speed and rounding only, so speed alone decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpstudy.errors import MachineError
from hpstudy.files import CACHE_REMEDY, cache_dir, write_atomic
from hpstudy.running.capacity import trainings_per_device
from hpstudy.running.executors import Worker, WorkerLost, time_steps
from hpstudy.study import Study

HEADROOM = 0.1  # share of the memory that stays free
# A smaller difference in speed is noise, or not worth more memory. An H100's steps repeat within 0.4%, and its memory
# serves nothing else.
NOTICEABLE = {"cpu": 0.02, "cuda": 0.01}
PROBE_STEPS = 3  # timed at each size that is tried
LEAST_TOKENS = 1024  # of one forward pass; half as many trained at 0.8 to 0.9 of the speed on one core
FIRST_TOKENS = {"cpu": LEAST_TOKENS, "cuda": 8192}  # of the first size tried; each size costs a GPU a compilation
# what speed and memory depend on
DEVICE = ("device", "device_name", "memory_gib", "precision", "deterministic", "threads", "ranks", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a few whole steps at one micro-batch took."""

    size: int  # sequences
    tok_per_sec: float | None  # None: they failed
    peak_gib: float = 0.0
    room_gib: float = math.inf  # memory that the training may use
    message: str = ""  # why they failed

    @property
    def fits(self) -> bool:
        """Whether the steps ran and left the headroom free."""
        return self.tok_per_sec is not None and self.peak_gib <= (1 - HEADROOM) * self.room_gib

    def __str__(self) -> str:
        """For the line that explains the choice: `16 (4,512 tok/s, 1.20 GiB)`."""
        if self.tok_per_sec is None:
            return f"{self.size} (does not run: {self.message})"
        limit = "" if self.fits else f" of {self.room_gib:.2f}"
        return f"{self.size} ({self.tok_per_sec:,.0f} tok/s, {self.peak_gib:.2f}{limit} GiB)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The fastest micro-batch of a study on a device."""

    size: int  # sequences
    probed: bool  # by the worker, which has ended or holds the memory of the largest probe, and should be replaced


def find_micro_batch(
    study: Study,
    worker: Worker,
    environment: Mapping[str, Any],
    say: Callable[[str], None],
    another: Callable[[], Worker],
    meanwhile: Callable[[], None] = lambda: None,
) -> Found:
    """The answer in the cache, or one that an idle worker measures now. Says which of the two, and the reason.

    `another` replaces the worker, which may end with a size that fails. Raises MachineError if no size runs.
    """
    batch, context = study.largest_batch_tokens, study.spec.context
    shape = {"model": asdict(study.spec.model), "vocab_size": study.vocab_size, "context": context}
    machine = {name: environment[name] for name in DEVICE}
    at_once = trainings_per_device(study, environment)
    key = {**shape, "batch_tokens": batch, "at_once": at_once, **machine, "hpstudy": version("hpstudy")}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    note = cache_dir() / "micro-batch" / f"{digest}.json"
    sizes = candidates(study.spec.rank_sequences(batch), context)
    if (known := _read(note, sizes, say)) is not None:
        return Found(size=known, probed=False)

    baseline = replace(study.baseline, batch_tokens=batch)
    say(f'micro_batch = "auto": timing steps at up to {", ".join(map(str, sizes))} sequences')

    ended = False

    def probe(size: int) -> Probe:
        nonlocal worker, ended
        if ended:
            worker = another()
        try:
            timed = time_steps(worker, replace(baseline, micro_batch=size), meanwhile, steps=PROBE_STEPS)
            ended = timed.last
        except WorkerLost:
            raise
        except MachineError:
            ended = True
            return Probe(size=size, tok_per_sec=None, message=f"its worker died, {worker.last_words().last_line}")
        return Probe(
            size=size,
            # the shortest step, because other processes only lengthen steps
            tok_per_sec=batch / min(timed.step_seconds) if timed.step_seconds else None,
            peak_gib=timed.peak_gib,
            room_gib=timed.room_gib / (at_once * study.spec.processes),
            message=timed.message,
        )

    kind = environment["device"]
    probes = explore(sizes, FIRST_TOKENS[kind] // context, probe, NOTICEABLE[kind])
    size = choose(probes, NOTICEABLE[kind])
    if size is None:
        raise MachineError(f"no micro-batch of this study runs here: {probes[0]}; take a smaller model")
    why = f"the smallest within {NOTICEABLE[kind]:.0%} of the fastest of {', '.join(map(str, probes))}"
    write_atomic(note, json.dumps({**key, "micro_batch": size, "why": why}, indent=1), remedy=CACHE_REMEDY)
    say(f"micro_batch: {size}, {why}")
    return Found(size=size, probed=True)


def _read(note: Path, sizes: list[int], say: Callable[[str], None]) -> int | None:
    """The micro-batch in the cache, or None. Says why an entry cannot be used."""
    if not note.exists():
        return None
    try:
        known = json.loads(note.read_bytes())
        size, why = known["micro_batch"], known["why"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{note} cannot be read ({type(error).__name__}: {error}); the micro-batch is measured again")
        return None
    if size not in sizes:
        say(f"{note} holds micro_batch {size!r}, which is none of {sizes}; the micro-batch is measured again")
        return None
    say(f"micro_batch: {size}, {why}; known from before")
    return int(size)


def candidates(sequences: int, context: int) -> list[int]:
    """Divisors of a batch's sequences to try, rising, each at least twice the one before.

    Sizes below LEAST_TOKENS a forward pass are left out, unless the whole batch is smaller.
    """
    least = min(sequences, -(-LEAST_TOKENS // context))
    found: list[int] = []
    for size in range(least, sequences + 1):
        if sequences % size == 0 and (not found or size >= 2 * found[-1]):
            found.append(size)
    return found


def explore(sizes: Sequence[int], first: int, probe: Callable[[int], Probe], noticeable: float) -> list[Probe]:
    """Climbs from the first size of at least `first` sequences; if that does not fit, from the smallest up to it."""
    larger = [size for size in sizes if size >= first] or list(sizes[-1:])
    smaller = [size for size in sizes if size < larger[0]]
    probes = climb(larger, probe, noticeable)
    return probes if probes[0].fits or not smaller else climb(smaller, probe, noticeable)


def climb(sizes: Sequence[int], probe: Callable[[int], Probe], noticeable: float) -> list[Probe]:
    """Probes rising sizes. A difference in speed of a share below `noticeable` is none. Stops

    - before a size that, by the growth of the last two, would not leave the headroom;
    - after a size that does not leave it;
    - after two sizes in a row that are not noticeably faster than the best before them.
    """
    probes: list[Probe] = []
    for size in sizes:
        if _expected_gib(probes, size) > (1 - HEADROOM) * min((p.room_gib for p in probes), default=math.inf):
            break
        probes.append(probe(size))
        if not probes[-1].fits or not (_grows(probes, noticeable) or _grows(probes[:-1], noticeable)):
            break
    return probes


def choose(probes: Sequence[Probe], noticeable: float) -> int | None:
    """The smallest size whose speed is within a share of `noticeable` of the fastest that fits, or None if none ran.

    The first size is taken even without headroom if no other fits: the headroom is a precaution.
    """
    speeds = {p.size: p.tok_per_sec for p in probes if p.tok_per_sec is not None and (p.fits or p is probes[0])}
    fastest = max(speeds.values(), default=0.0)
    return min((size for size, speed in speeds.items() if speed >= (1 - noticeable) * fastest), default=None)


def _expected_gib(probes: Sequence[Probe], size: int) -> float:
    """Peak memory at a size, on the line through the last two probes; 0 before there are two."""
    if len(probes) < 2:
        return 0.0
    before, last = probes[-2:]
    slope = (last.peak_gib - before.peak_gib) / (last.size - before.size)
    return last.peak_gib + slope * (size - last.size)


def _grows(probes: Sequence[Probe], noticeable: float) -> bool:
    """Whether the last probe is noticeably faster than the best before it."""
    best = max((p.tok_per_sec or 0.0 for p in probes[:-1]), default=0.0)
    return not probes or (probes[-1].tok_per_sec or 0.0) > (1 + noticeable) * best
