"""A peer: a GPT and its training loop as a teaching notebook writes them in plain torch.

Every operation is torch's own, and nothing is tuned to the device. Parameters have the names of hpstudy's model, so
that a test can start both from the same weights.
Shapes: B sequences, T tokens of context, C width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpstudy.data.corpus import Corpus, WindowSampler
from hpstudy.hparams import HParams
from hpstudy.records import Run
from hpstudy.schedule import StepPlan, plan
from hpstudy.spec import ModelShape, TrainerSpec
from hpstudy.training.device import Placement

Forward = Callable[[Tensor], Tensor]
"""Token ids [B, T] -> logits [B, T, V]"""


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2) for y in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return out


class MLP(nn.Module):
    """Two linear layers, four times as wide inside."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class NotebookGPT(nn.Module):
    """GPT-2 with a tied output layer. Returns logits."""

    def __init__(self, shape: ModelShape, vocab_size: int, context: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, shape.width)
        self.wpe = nn.Embedding(context, shape.width)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, param in self.named_parameters():
            if param.ndim >= 2:
                scale = 1 / math.sqrt(2 * shape.layers) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(param, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        out: Tensor = self.lm_head(self.ln_f(x))
        return out


def configure_optimizer(model: nn.Module, hparams: HParams, *, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings only."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": hparams.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=hparams.lr, betas=(hparams.beta1, hparams.beta2), eps=hparams.eps, fused=fused or None
    )


def train(
    model: nn.Module,
    forward: Forward,
    spec: TrainerSpec,
    run: Run,
    corpus: Corpus,
    placement: Placement,
    *,
    fused: bool = False,
) -> Iterator[tuple[StepPlan, float]]:
    """Trains a run and yields each step with its mean loss over the micro-batches. Clips by the global norm.

    `fused`: AdamW by torch's fused kernel instead of its default for the device.
    """
    hparams = run.hparams
    optimizer = configure_optimizer(model, hparams, fused=fused)
    sampler = WindowSampler(corpus, spec.context, run.seed)
    for step in plan(hparams, budget=run.tokens, unit=spec.ramp_multiple * spec.context, evals=spec.evals):
        windows = sampler.windows(step.tokens_before // spec.context, step.batch_tokens // spec.context)
        inputs, targets = (
            torch.split(torch.from_numpy(ids).to(placement.device), hparams.micro_batch) for ids in windows
        )
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for x, y in zip(inputs, targets, strict=True):
            with placement.autocast():
                loss = cross_entropy(forward(x), y) / len(inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), hparams.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = step.lr
        optimizer.step()
        yield step, total


@torch.no_grad()
def evaluate(forward: Forward, batches: Iterable[tuple[Tensor, Tensor]], placement: Placement) -> float:
    """Mean loss over all predictions of the batches."""
    total, count = 0.0, 0
    for x, y in batches:
        with placement.autocast():
            total += cross_entropy(forward(x), y).item() * y.numel()
        count += y.numel()
    return total / count


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all predictions, of logits in fp32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
