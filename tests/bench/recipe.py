"""A peer: the recipe of build-nanogpt, which trains GPT-2's 124M parameters on GPUs, on the notebook's model.

TF32 for products in fp32, bf16 autocast if the device has it, model and loss compiled as one, fused AdamW and one
synchronisation per step. Micro-batches are those of the race: on a GPU, for gpt-125m, its author's 64 sequences
accumulated to 2^19 tokens. Its author compiles, so it is compiled on CPUs too. Its kernels need not be
deterministic. Source: Karpathy 2024, "Let's reproduce GPT-2 (124M)".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hpstudy.data.corpus import Corpus, WindowSampler
from hpstudy.records import Run
from hpstudy.schedule import StepPlan, plan
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.device import Placement
from tests.bench.notebook import Forward, NotebookGPT, configure_optimizer, cross_entropy


class WithLoss(nn.Module):
    """A model that returns its loss, so that both compile together."""

    def __init__(self, logits: Forward) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of [B, T] ids."""
        return cross_entropy(self.logits(tokens), targets)


def train(model: NotebookGPT, spec: TrainerSpec, run: Run, corpus: Corpus, placement: Placement) -> Iterator[StepPlan]:
    """Trains a run and yields each step after the device has finished it."""
    torch.set_float32_matmul_precision("high")
    hparams = run.hparams
    loss_of = torch.compile(WithLoss(model))
    optimizer = configure_optimizer(model, hparams, fused=True)
    sampler = WindowSampler(corpus, spec.context, run.seed)
    for step in plan(hparams, budget=run.tokens, unit=spec.ramp_multiple * spec.context, evals=spec.evals):
        first, count = step.tokens_before // spec.context, step.batch_tokens // spec.context
        optimizer.zero_grad()
        total = torch.zeros((), device=placement.device)
        for start in range(first, first + count, hparams.micro_batch):
            windows = sampler.windows(start, hparams.micro_batch)
            x, y = (torch.from_numpy(ids).to(placement.device) for ids in windows)
            with placement.autocast():
                loss = loss_of(x, y) / (count // hparams.micro_batch)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), hparams.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = step.lr
        optimizer.step()
        total.item()
        yield step


def build(shape: ModelShape, vocab_size: int, context: int, placement: Placement) -> NotebookGPT:
    """The notebook's model on the device."""
    return NotebookGPT(shape, vocab_size, context).to(placement.device)
