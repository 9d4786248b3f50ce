"""The notebook's loop trains what hpstudy's trainer trains, so that a race between them is fair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hpstudy.data.corpus import load_corpus
from hpstudy.hparams import GPT3
from hpstudy.records import Run
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.device import place
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.trainer import Trainer
from tests.bench.notebook import NotebookGPT, train

CONTEXT, VOCAB = 16, 256


def test_the_notebooks_losses_are_the_trainers():
    torch.set_num_threads(1)
    spec = TrainerSpec(
        model=ModelShape(layers=2, heads=2, width=32),
        corpus="asv",
        tokenizer="bytes",
        context=CONTEXT,
        tokens=6400,
        seconds=None,
        evals=2,
        val_tokens=512,
        seed=0,
        threads=1,
        precision="fp32",
        ramp_multiple=4,
    )
    # two micro-batches a step, a learning rate at which the loss falls, and a norm at which most steps are clipped
    hparams = replace(
        GPT3, lr=3e-3, batch_tokens=8 * CONTEXT, micro_batch=4, grad_clip=0.5, warmup_fraction=0.1, weight_decay=1.0
    )
    run = Run(run_id="bench", phase="search", trial=None, seed=5, tokens=6400, hparams=hparams)
    corpus, placement = load_corpus("asv", "bytes", 512), place("cpu", "fp32")
    records = list(Trainer(spec, corpus, placement).train(run))

    start = GPT(spec.model, VOCAB, CONTEXT)
    initialize(start, run.seed)
    model = NotebookGPT(spec.model, VOCAB, CONTEXT)
    model.load_state_dict(start.state_dict(), strict=False)  # the tied output layer has wte's name
    theirs = [(step.step, step.eval_index, loss) for step, loss in train(model, model, spec, run, corpus, placement)]

    assert records[-1].loss < records[0].loss - 0.5
    assert any(record.clipped for record in records)
    assert [(step, point) for step, point, _ in theirs] == [(record.step, record.eval_index) for record in records]
    assert [loss for *_, loss in theirs] == pytest.approx([record.loss for record in records], abs=1e-5)
