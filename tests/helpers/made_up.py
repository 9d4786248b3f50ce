"""Studies whose training is made up: losses, norms and speeds follow from a run's hyperparameters and its seed.

The search, the selections, the race and the store are the product's own, so that `train` makes in seconds what a driver
makes in hours. The same study always has the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpstudy.hparams import HParams
from hpstudy.records import Outcome, Phase, Run, RunResult, StepRecord
from hpstudy.running.confirm import control_of_best, update_selections
from hpstudy.running.opponents import TUNED_LR_JOURNAL, tuned_lr
from hpstudy.running.race_queue import RaceQueue
from hpstudy.running.run_queue import RunList, RunQueue, TrialQueue
from hpstudy.running.summary import RunSummary
from hpstudy.schedule import Evaluation, StepPlan, plan
from hpstudy.search import JOURNAL, Search
from hpstudy.study import Study, study_sha256
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.study.load import parse_study
from hpstudy.tracking.store import RunStore
from hpstudy.training.divergence import PATIENCE_STEPS, DivergenceWatch
from tests.helpers.stores import header_of

NUM_PARAMS = 141_056  # of gpt-2x64 with 512 tokens
FLOOR, SHORTER = 3.8, 0.25  # nats: the loss of the best values, and what e times fewer tokens add
SHARED_NOISE = 0.02  # nats; what a seed adds to every run on it
WORST_LOSS, WORST_NORM = 4e7, 1e12  # at the last step of a run that diverges
MESSAGES = {
    Outcome.FAILED: "RuntimeError: CUDA error: an illegal memory access was encountered",
    Outcome.OUT_OF_MEMORY: "torch.OutOfMemoryError: tried to allocate 2.50 GiB; of 79.11 GiB 1.21 GiB are free",
}
MACHINE: dict[str, Any] = {
    "device": "cpu",
    "precision": "bf16",
    "reason": "the CPU has bf16 arithmetic (AVX512-BF16 or AMX)",
    "deterministic": True,
    "device_name": "Made-up 2-Core Processor",
    "cpu_capability": "AVX512",
    "threads": 1,
    "cores": 2,
    "memory_gib": 24,
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "packages": {"hpstudy": "0.2.0", "optuna": "5.0.0", "numpy": "2.4.6", "pandas": "3.1.1"},
    "git_commit": "591fe0a5c4d7356f56a2780f50d5b0c25e096099",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """A study, and how its runs end."""

    text: str  # of the study file
    effect: float = 1.0  # of the hyperparameters on the loss; 0: none
    noise: float = 0.006  # nats; what a run adds to its loss besides what its seed adds to all
    lost: Mapping[str, Outcome] = field(default_factory=dict)  # how the runs end that diverge or fail, by id
    stopped: str | None = None  # the run during which the study was stopped
    loss: Callable[[Run, Study], float] | None = None  # of a run without noise; by default `_end_loss`


class _StoppedError(Exception):
    """The study was stopped during a run."""


def train(name: str, made_up: MadeUp, runs: Path) -> RunStore:
    """Runs a study in the folder `runs` as its driver does, and returns its store."""
    study = parse_study(made_up.text, name=name, path=Path("studies") / f"{name}.toml")
    store = RunStore(runs / name)
    store.create()
    store.freeze_study(made_up.text, study.resolved())
    store.write_json(ENVIRONMENT, MACHINE | {"study_sha256": study_sha256(study.resolved())})
    with contextlib.suppress(_StoppedError):
        _search(study, made_up, store)
        _confirm(study, made_up, store)
    return store


def _search(study: Study, made_up: MadeUp, store: RunStore) -> None:
    """The search, the baseline if it is no trial, and the other opponents."""
    _search_phase(study, made_up, store, JOURNAL, "search")
    if study.baseline_proposal() is None:
        assert study.spec.tokens is not None
        run = Run(
            run_id=study.baseline_run_id,
            phase="baseline",
            trial=None,
            seed=study.spec.seed,
            tokens=study.spec.tokens,
            hparams=study.baseline,
        )
        _run_all(RunList([run]), study, made_up, store)
    if "tuned-lr" in study.also:
        _search_phase(tuned_lr(study), made_up, store, TUNED_LR_JOURNAL, "tuned-lr")
    if "batch" in study.also and (control := control_of_best(study, store.runs())):
        _run_all(RunList([control]), study, made_up, store)


def _search_phase(study: Study, made_up: MadeUp, store: RunStore, journal: str, phase: Phase) -> None:
    assert study.spec.tokens is not None
    search = Search(study, store.root / journal, trials=study.trials)
    _run_all(TrialQueue(study, search, lambda _: study.spec.tokens or 0, phase), study, made_up, store)


def _confirm(study: Study, made_up: MadeUp, store: RunStore) -> None:
    selections = update_selections(study, store, say=lambda _: None)
    _run_all(RaceQueue(study, selections, store.runs(), on_look=lambda *_: None), study, made_up, store)


def _run_all(queue: RunQueue, study: Study, made_up: MadeUp, store: RunStore) -> None:
    while run := queue.next():
        queue.on_result(run, _run(run, queue, study, made_up, store))


def _run(run: Run, queue: RunQueue, study: Study, made_up: MadeUp, store: RunStore) -> RunResult:
    """Trains one run into the store. Raises _StoppedError in the middle of the run that is to be stopped."""
    header = replace(header_of(run, study=study.name), num_params=NUM_PARAMS)
    header = replace(header, derived=header.derived | study.coordinates(run.hparams, run.tokens or 0))
    writer, summary, watch = store.begin(header), RunSummary(), DivergenceWatch(run, study.vocab_size)
    lost = made_up.lost.get(run.run_id)
    outcome = lost if lost in MESSAGES else Outcome.COMPLETE
    for record in _records(run, study, made_up, lost):
        if run.run_id == made_up.stopped and record.tokens > run.tokens / 2:
            writer.close()
            raise _StoppedError
        writer.append(record)
        summary.add(record)
        queue.on_step(run, record)
        if watch.diverged(record):
            outcome = Outcome.DIVERGED
            break
        if queue.awaits_decision(run) and record.evaluated and queue.should_stop(run, record):
            outcome = Outcome.PRUNED
            break
    result = summary.result(outcome, MESSAGES.get(outcome, ""))
    writer.finish(result)
    return result


def _records(run: Run, study: Study, made_up: MadeUp, lost: Outcome | None) -> Iterator[StepRecord]:
    """The steps of a run. Lost to memory it has none; failed it ends, and diverged it departs, in the middle."""
    assert run.tokens
    hparams, spec, start = run.hparams, study.spec, math.log(study.vocab_size)
    steps = list(plan(hparams, budget=run.tokens, unit=spec.ramp_unit, evals=spec.evals))
    middle = {Outcome.OUT_OF_MEMORY: 0, Outcome.FAILED: len(steps) // 2}.get(lost or Outcome.COMPLETE, len(steps))
    shared, own = _random(study.name, run.seed), _random(study.name, run.run_id)
    loss_of = made_up.loss(run, study) if made_up.loss else _end_loss(run, made_up)
    end = loss_of + SHARED_NOISE * shared.normal() + made_up.noise * own.normal()
    speed = _tok_per_sec(hparams) * math.exp(0.01 * own.normal())
    for step in steps[:middle]:
        loss = end + (start - end) * _shape(step.tokens / run.tokens, hparams)
        norm = (0.35 + 0.9 * _shape(step.tokens / run.tokens, hparams)) * math.exp(0.12 * own.normal())
        if own.random() < 0.02:
            norm *= own.uniform(4, 12)  # a spike
        if lost is Outcome.DIVERGED and (late := step.step - len(steps) // 2) > 0:
            loss, norm = (low * (high / low) ** (late / PATIENCE_STEPS) for low, high in (
                (start + 1.5, WORST_LOSS), (10.0, WORST_NORM),
            ))  # fmt: skip
        seconds = step.batch_tokens / (speed * math.exp(0.03 * own.normal())) * (3.0 if step.step == 1 else 1.0)
        figures = (
            loss + 0.06 * shared.normal(),
            norm,
            float(hparams.clip_mode != "none" and norm > hparams.grad_clip),
            4.0 * step.lr * math.exp(0.05 * own.normal()),
        )
        yield _record(step, figures, seconds, hparams, study, loss)


def _record(
    step: StepPlan, figures: tuple[float, ...], seconds: float, hparams: HParams, study: Study, val_loss: float
) -> StepRecord:
    evaluation = Evaluation(val_loss=val_loss, bf16_lost=0.5, seconds=0.03) if step.eval_index else None
    size, context = step.micro_batch(hparams, study.spec), study.spec.context
    return step.record(figures, seconds, micro_batch=size, context=context, evaluation=evaluation)


def _shape(done: float, hparams: HParams) -> float:
    """How much of the fall of the loss is left, from 1 at the start to 0 at the end; a higher lr falls sooner."""
    knee = 0.06 * (4e-3 / hparams.lr) ** 0.3
    left, last = ((1 + x / knee) ** -0.8 for x in (done, 1.0))
    return (left - last) / (1 - last)


def _end_loss(run: Run, made_up: MadeUp) -> float:
    """The loss of a run without noise. It is lowest inside the ranges that studies search."""
    h = run.hparams
    penalty = (
        0.30 * math.log10(h.lr / 4e-3) ** 2
        + 0.05 * math.log10((1 - h.beta1) / 0.12) ** 2
        + 0.12 * math.log10((1 - h.beta2) / 0.01) ** 2
        + 0.02 * math.log10((h.weight_decay + 1e-3) / 0.1) ** 2
        + 0.05 * math.log2(h.batch_tokens / 1024) ** 2
        + 2.00 * (h.min_lr_fraction - 0.06) ** 2
        + {"global": 0.0, "per_tensor": 0.015, "none": 0.05}[h.clip_mode]
    )
    return FLOOR + made_up.effect * penalty - SHORTER * math.log(run.tokens / 300_000)


def _tok_per_sec(hparams: HParams) -> float:
    """Fastest at a micro-batch of 8, and a little faster with large batches."""
    return 110_000 * 0.9 ** abs(math.log2(hparams.micro_batch / 8)) * 1.05 ** math.log2(hparams.batch_tokens / 2048)


def _random(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(" ".join(map(str, words)).encode()))
