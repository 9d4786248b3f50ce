"""One trial as a sweep agent runs it: a new process that trains the notebook's loop and logs every step to W&B.

It reads the pickled trial from stdin and prints the last validation loss.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import asdict

import torch
import wandb

from hpstudy.data.corpus import corpus_of, val_windows
from hpstudy.training.device import place
from hpstudy.training.gpt import GPT, initialize
from tests.bench.notebook import evaluate, train
from tests.bench.peers import build
from tests.bench.trials import Trial

EVAL_TOKENS = 16_384  # of one forward pass


def run_trial(trial: Trial) -> float:
    """Trains the trial's run and returns its last validation loss."""
    spec, run = trial.spec, trial.run
    if trial.threads is not None:
        torch.set_num_threads(trial.threads)
    placement = place(trial.device, spec.precision)
    corpus = corpus_of(spec)
    inputs, targets = (torch.from_numpy(ids).to(placement.device) for ids in val_windows(corpus, spec.context))
    rows = max(1, EVAL_TOKENS // spec.context)
    batches = list(zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True))
    model, forward = build("notebook", spec.model, corpus.vocab_size, spec.context, placement)
    start = GPT(spec.model, corpus.vocab_size, spec.context)
    initialize(start, run.seed)
    model.load_state_dict(start.state_dict(), strict=False)  # the tied output layer has wte's name
    logged = wandb.init(
        mode="offline",
        project="bench",
        name=run.run_id,
        dir=trial.folder,
        config=asdict(run.hparams),
        settings=wandb.Settings(silent=True),
    )
    val_loss = float("nan")
    for step, loss in train(model, forward, spec, run, corpus, placement, fused=placement.is_cuda):
        row = {"train/loss": loss, "train/lr": step.lr, "tokens": step.tokens}
        if step.eval_index is not None:
            val_loss = evaluate(forward, batches, placement)
            row["val/loss"] = val_loss
        logged.log(row, step=step.step)
    logged.finish()
    return val_loss


if __name__ == "__main__":
    print(run_trial(pickle.load(sys.stdin.buffer)))
