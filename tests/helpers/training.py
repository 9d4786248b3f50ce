"""A tiny trainer, its runs and their curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hpstudy.data.corpus import corpus_of
from hpstudy.hparams import GPT3, HParams
from hpstudy.records import Run, StepRecord
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.checkpoint import Checkpoint
from hpstudy.training.device import place
from hpstudy.training.trainer import Trainer

CONTEXT, BATCH = 32, 256
SPEC = TrainerSpec(
    model=ModelShape(layers=2, heads=2, width=32),
    corpus="asv",
    tokenizer="gpt2:512",
    context=CONTEXT,
    tokens=20 * BATCH,
    seconds=None,
    evals=4,
    val_tokens=1024,
    seed=0,
    threads=1,
    precision="fp32",
    ramp_multiple=1,
)
HPARAMS = replace(
    GPT3, lr=3e-3, batch_tokens=BATCH, micro_batch=8, warmup_fraction=0.25, batch_ramp_fraction=0.0, grad_clip=0.5
)
TIMES: dict[str, Any] = {"step_seconds": 0.0, "tok_per_sec": 0.0, "eval_seconds": None}


def make_trainer(spec: TrainerSpec = SPEC, device: str = "cpu", **options: Any) -> Trainer:
    """A trainer of the spec on a device; options are those of `Trainer`."""
    corpus = corpus_of(spec)
    return Trainer(spec, corpus, place(device, spec.precision), **options)


def run(hparams: HParams = HPARAMS, *, seed: int = 0, tokens: int = 20 * BATCH) -> Run:
    """A trial of 20 steps."""
    return Run(run_id="search-0000", phase="search", trial=0, seed=seed, tokens=tokens, hparams=hparams)


def timeless(record: StepRecord) -> StepRecord:
    """A record without its times, which differ from training to training."""
    return replace(record, **TIMES)


def curve(trainer: Trainer, of: Run, checkpoint: Checkpoint | None = None) -> list[StepRecord]:
    """The records of a run without their times."""
    return [timeless(record) for record in trainer.train(of, checkpoint)]
