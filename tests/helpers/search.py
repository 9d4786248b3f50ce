"""A small study, trials that train nothing, and whole searches in an order left to chance.

`python -m tests.helpers.search JOURNAL SEED` runs such a search as a process of its own.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from optuna.storages.journal import JournalFileBackend

from hpstudy.records import Outcome, RunResult
from hpstudy.search import Search, TrialView
from hpstudy.spec import PRESETS, TrainerSpec
from hpstudy.study import (
    Budget,
    Choices,
    Confirm,
    Dimension,
    FloatRange,
    Pruner,
    Sampler,
    Study,
    Value,
)
from hpstudy.study.schema import MetricName, SamplerName

ROOT = Path(__file__).parents[2]
VOCAB = 50257
LOSS: MetricName = "val/loss"
SPEED: MetricName = "train/tok_per_sec"
NO_PRUNER = Pruner(name="none", startup=5, from_fraction=0.3, reduction=4)
MEDIAN = Pruner(name="median", startup=3, from_fraction=0.5, reduction=4)
HALVING = Pruner(name="successive_halving", startup=0, from_fraction=0.25, reduction=2)
STARTUP = 3
SPACE: dict[str, Dimension] = {
    "lr": FloatRange(low=1e-4, high=6e-3, scale="log"),
    "beta1": FloatRange(low=0.8, high=0.98, scale="log1m"),
    "weight_decay": FloatRange(low=0.0, high=0.5, scale="linear"),
    "clip_mode": Choices(values=("per_tensor", "global", "none")),
}
GRID: dict[str, Dimension] = {
    "micro_batch": Choices(values=(2, 4, 8)),
    "eps": Choices(values=(1e-6, 1e-8)),
    "clip_mode": Choices(values=("none", "global")),
}
BASELINE = {"lr": 6e-4, "beta1": 0.9, "weight_decay": 0.1, "clip_mode": "global"}
GRID_BASELINE = {"micro_batch": 4, "eps": 1e-8, "clip_mode": "global"}

End = Callable[[Mapping[str, Value]], RunResult]
"""How a trial of some values ends."""


def toy_study(
    sampler: SamplerName = "tpe",
    *,
    parallel: int = 1,
    trials: int = 12,
    evals: int = 3,
    pruner: Pruner = NO_PRUNER,
    metrics: tuple[MetricName, ...] = (LOSS,),
    seed: int = 0,
    space: dict[str, Dimension] | None = None,
) -> Study:
    """A study of four hyperparameters, or of twelve points for a grid."""
    return Study(
        name="toy",
        path=Path("studies/toy.toml"),
        question="Is the search reproducible?",
        baseline_name="gpt3",
        overrides={"micro_batch": 4},
        hparams={"batch_tokens": 4096} | ({} if sampler == "grid" else {"micro_batch": 4}),
        spec=TrainerSpec(
            model=PRESETS["gpt-2x64"],
            corpus="asv",
            tokenizer="gpt2",
            context=128,
            tokens=1_000_000,
            seconds=None,
            evals=evals,
            val_tokens=4096,
            seed=0,
            threads=1,
            precision="fp32",
            ramp_multiple=8,
        ),
        space=space or (GRID if sampler == "grid" else SPACE),
        metrics=metrics,
        budget=Budget(
            trials=trials,
            parallel=parallel,
            sampler=Sampler(name=sampler, startup=STARTUP, seed=seed),
            pruner=pruner,
        ),
        confirm=Confirm(seeds=(101, 102), top=1, margin=0.01, design="paired"),
        vocab_size=VOCAB,
        project="hpstudy",
        entity=None,
        warnings=(),
    )


def result(
    outcome: Outcome = Outcome.COMPLETE, val_loss: float | None = 3.0, tok_per_sec: float | None = 1000.0
) -> RunResult:
    """How a run of 100 steps ended."""
    return RunResult(
        outcome=outcome,
        steps=100,
        tokens=100_000,
        val_loss=val_loss,
        best_val_loss=val_loss,
        train_loss=val_loss,
        tok_per_sec=tok_per_sec,
        train_seconds=1.0,
        clipped_share=0.0,
    )


def toy_result(values: Mapping[str, Value]) -> RunResult:
    """A loss with its minimum inside the space; a high lr diverges, a high weight decay fails."""
    if values.get("lr", 0) > 4e-3:
        return result(Outcome.DIVERGED, math.nan)
    if values.get("weight_decay", 0) > 0.45:
        return result(Outcome.FAILED, None)
    loss = 3 + math.log(values.get("lr", 1e-3) / 1e-3) ** 2 + (values.get("beta1", 0.95) - 0.95) ** 2
    loss += values.get("weight_decay", 0) + len(values["clip_mode"]) / 10 + values.get("micro_batch", 0) / 100
    return result(val_loss=loss, tok_per_sec=1000 * len(values["clip_mode"]) + values.get("lr", 0))


def tight_result(values: Mapping[str, Value]) -> RunResult:
    """The same on a device without memory for the two largest micro-batches, or for a high lr in their place."""
    if values.get("micro_batch", 0) >= 16 or values.get("lr", 0) > 2e-3:
        return result(Outcome.OUT_OF_MEMORY, None, None)
    return toy_result({"clip_mode": "none"} | values)


def tell_all(search: Search, losses: Iterable[float]) -> None:
    """Asks for one trial after another, and ends each at its loss."""
    for loss in losses:
        proposal = search.ask()
        search.tell(proposal.number, result(val_loss=loss))


def drive(study: Study, journal: Path, chance: Random, ends: End = toy_result) -> list[TrialView]:
    """A whole search whose trials report and end in an order left to chance. Resumes the journal if there is one."""
    search = Search(study, journal)
    evals: dict[int, int] = {}
    results: dict[int, RunResult] = {}
    while True:
        if chance.random() < 0.5:
            search.ask()
        pending = search.pending()
        if not pending and search.ask() is None:
            return search.trials()
        if pending and pending[0].number in results and chance.random() < 0.5:
            search.tell(pending[0].number, results[pending[0].number])
        elif pending:
            proposal = chance.choice(pending)
            if proposal.number in results:
                continue
            end = ends(proposal.values)
            evals[proposal.number] = done = evals.get(proposal.number, 0) + 1
            search.report(proposal.number, done, (end.val_loss or 9.0) + 1 - done / study.spec.evals)
            if search.should_stop(proposal.number, done):
                results[proposal.number] = replace(end, outcome=Outcome.PRUNED)
            elif done == study.spec.evals:
                results[proposal.number] = end


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_writes(monkeypatch: pytest.MonkeyPatch, journal: Path) -> None:
    """Lets each process write one event and ends it at the second: not written, cut short, or written.

    The lock of the journal stays behind.
    """
    append, calls = JournalFileBackend.append_logs, itertools.count(1)

    def append_or_die(backend, logs):
        call = next(calls)
        if call % 2 == 1:
            append(backend, logs)
            return
        if call % 3 == 0:
            append(backend, logs)
        elif call % 3 == 1:
            with journal.open("ab") as file:
                file.write(b'{"op_code": 4, "worker_i')
        journal.with_name(f"{journal.name}.lock").symlink_to(journal)
        raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_or_die)


if __name__ == "__main__":
    drive(toy_study("tpe", parallel=4), Path(sys.argv[1]), Random(int(sys.argv[2])))
