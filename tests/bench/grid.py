"""Trains the recorded runs that searches and forecasts are scored on.

`python -m tests.bench.grid train FOLDER` trains them, a line of JSON a run, and goes on after a stop; with `--part 0/3`
one process of three. `python -m tests.bench.grid merge FOLDER FILE` makes one Parquet file of the lines.
The recorded file is tests/recorded/runs.parquet, trained on an NVIDIA H100 (three processes, 11 minutes).

Sets of runs, all of `asv` with 512 ids at context 128:
grid     learning rate x beta2 x weight decay x batch, gpt-2x64, 1M tokens; an eighth of its cells on three more seeds
random   random values of seven keys, both models: whole curves, for forecasts
sizes    learning rate x batch, five models of 0.1 to 4.7 million weights, 4M tokens: what laws are fitted to
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpstudy.data.corpus import corpus_of
from hpstudy.hparams import GPT3, HParams, scaled_warmup_fraction
from hpstudy.records import Run
from hpstudy.spec import PRESETS, ModelShape, TrainerSpec
from hpstudy.training.device import place, prepare_process
from hpstudy.training.divergence import DivergenceWatch
from hpstudy.training.trainer import Trainer

MILLION = 1_000_000
MODELS = PRESETS | {
    "gpt-3x96": ModelShape(layers=3, heads=3, width=96),
    "gpt-6x192": ModelShape(layers=6, heads=6, width=192),
}
RATES = tuple(6e-4 * 2**k for k in range(7))  # GPT-3's and up to 64 times it
KEYS = ("lr", "beta1", "beta2", "weight_decay", "warmup_fraction", "min_lr_fraction", "batch_tokens")
SETS = ("grid", "random", "sizes")  # in the order of training


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run to train."""

    group: str
    model: str
    tokens: int
    seed: int
    values: dict[str, float]

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.group}/{self.model}/{self.seed}/{json.dumps(self.values, sort_keys=True)}"

    @property
    def hparams(self) -> HParams:
        """GPT-3's values without a ramp, warmed up as a study of this length would, and then the run's own."""
        batch = int(self.values["batch_tokens"])
        base = replace(
            GPT3,
            batch_ramp_fraction=0.0,
            warmup_fraction=scaled_warmup_fraction(self.tokens, batch),
            micro_batch=min(batch // 128, 64),
        )
        values: dict[str, Any] = self.values | {"batch_tokens": batch}
        return replace(base, **values)


def planned(group: str) -> Iterator[Recorded]:
    """The runs of a set, in a fixed order that spreads each key."""
    draw = np.random.default_rng(SETS.index(group))
    if group == "random":
        for model, tokens in (("gpt-2x64", MILLION), ("gpt-4x128", 4 * MILLION)):
            for _ in range(64):
                values = {
                    "lr": 3e-4 * 100 ** draw.random(),
                    "beta1": 1 - 0.2 * 0.1 ** draw.random(),
                    "beta2": 1 - 0.1 * 0.01 ** draw.random(),
                    "weight_decay": 1e-3 * 1000 ** draw.random(),
                    "warmup_fraction": 0.01 * 30 ** draw.random(),
                    "min_lr_fraction": 0.2 * draw.random(),
                    "batch_tokens": int(draw.choice([1024, 2048, 4096, 8192])),
                }
                yield Recorded(group=group, model=model, tokens=tokens, seed=0, values=values)
        return
    if group == "sizes":
        models = ("gpt-2x64", "gpt-3x96", "gpt-4x128", "gpt-6x192", "gpt-6x256")
        for rate, batch, model in product(RATES, (4096, 8192, 16384), models):
            values = {"lr": rate, "batch_tokens": batch}
            yield Recorded(group=group, model=model, tokens=4 * MILLION, seed=0, values=values)
        return
    names = ("lr", "beta2", "weight_decay", "batch_tokens")
    cells = list(product(RATES, (0.9, 0.95, 0.98, 0.99), (0.01, 0.1, 0.3, 1.0), (1024, 2048, 4096, 8192)))
    order = draw.permutation(len(cells))
    for seed, indices in ((0, order), *((seed, order[: len(cells) // 8]) for seed in (1, 2, 3))):
        for index in indices:
            values = dict(zip(names, cells[index], strict=True))
            yield Recorded(group=group, model="gpt-2x64", tokens=MILLION, seed=seed, values=values)


def trained(trainer: Trainer, wanted: Recorded) -> dict[str, Any]:
    """What a run ended with, and its validation losses on the grid of evaluations."""
    tokens = wanted.tokens // int(wanted.values["batch_tokens"]) * int(wanted.values["batch_tokens"])
    run = Run(run_id="recorded", phase="search", trial=None, seed=wanted.seed, tokens=tokens, hparams=wanted.hparams)
    watch = DivergenceWatch(run, trainer.vocab_size)
    curve: dict[int, float] = {}
    diverged = False
    for record in trainer.train(run):
        if record.eval_index is not None and record.val_loss is not None:
            curve[record.eval_index] = record.val_loss
        if diverged := watch.diverged(record):
            break
    spec = trainer.spec
    whole = spec.model.num_params(trainer.vocab_size, spec.context)
    limit = math.log(trainer.vocab_size)
    last = math.inf if diverged or not curve else curve[max(curve)]
    return {
        "name": wanted.name,
        "group": wanted.group,
        "model": wanted.model,
        "N": whole - (trainer.vocab_size + spec.context) * spec.model.width,
        "D": tokens,
        "seed": wanted.seed,
        **{key: getattr(wanted.hparams, key) for key in KEYS},
        "loss": min(last, limit) if math.isfinite(last) else limit,
        "diverged": diverged,
        "curve": [round(curve[index], 5) for index in sorted(curve)],
        "evals": sorted(curve),
    }


def train(folder: Path, device: str, groups: list[str], part: tuple[int, int], seconds: float) -> None:
    """Trains what FOLDER lacks of this part of the sets, until `seconds` have passed."""
    end = time.monotonic() + seconds
    prepare_process(1)
    placement = place(device, "auto")
    folder.mkdir(parents=True, exist_ok=True)
    known = {json.loads(line)["name"] for file in folder.glob("*.jsonl") for line in file.open(encoding="utf-8")}
    trainers: dict[tuple[str, int], Trainer] = {}
    with (folder / f"part-{part[0]}.jsonl").open("a", encoding="utf-8") as file:
        for group in groups:
            for wanted in islice(planned(group), part[0], None, part[1]):
                if wanted.name in known:
                    continue
                if time.monotonic() > end:
                    return
                key = wanted.model, wanted.tokens
                if key not in trainers:
                    spec = TrainerSpec(
                        model=MODELS[wanted.model],
                        corpus="asv",
                        tokenizer="gpt2:512",
                        context=128,
                        tokens=wanted.tokens,
                        evals=20,
                        val_tokens=65_536,
                    )
                    trainers[key] = Trainer(spec, corpus_of(spec), placement, compile=False)
                file.write(
                    json.dumps(trained(trainers[key], wanted) | {"device": placement.environment()["device_name"]})
                    + "\n"
                )
                file.flush()


def merge(folder: Path, file: Path) -> None:
    """Writes the lines of FOLDER as one Parquet file, in the order of the plans."""
    rows = {}
    for lines in folder.glob("*.jsonl"):
        for line in lines.open(encoding="utf-8"):
            row = json.loads(line)
            rows[row.pop("name")] = row
    ordered = [rows[wanted.name] for group in SETS for wanted in planned(group) if wanted.name in rows]
    pd.DataFrame(ordered).to_parquet(file, index=False, compression="zstd")
    print(f"{len(ordered)} runs: {file}")


def main() -> None:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.grid", description=__doc__)
    parser.add_argument("command", choices=["train", "merge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    if args.command == "merge":
        merge(args.folder, args.file)
    else:
        index, count = map(int, args.part.split("/"))
        train(args.folder, args.device, args.sets.split(","), (index, count), args.seconds)


if __name__ == "__main__":
    main()
