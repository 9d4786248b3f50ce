"""Weights in one flat buffer, grouped AdamW over it, and gradient clipping.

In one buffer, AdamW, the norms and the update-to-weight ratio are each one pass over contiguous memory instead of a
call per tensor. AdamW works element by element, so the numbers are those of the usual parameter groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpstudy.hparams import ClipMode, HParams

NORM_CHUNK = 4096  # torch's fp32 norm of 124M numbers at once was 1.3% too small on a CPU; by rows of 4096, 1e-7
CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def norm(flat: Tensor) -> Tensor:
    """Euclidean norm of a flat fp32 tensor. The length must be a multiple of NORM_CHUNK."""
    total: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(flat.view(-1, NORM_CHUNK), dim=1))
    return total


class FlatParameters:
    """A model's parameters and gradients as views of two flat fp32 buffers: decayed tensors first, then the rest.

    Decayed are the tensors of two or more dimensions (matrices and embeddings, the tied one once), never biases or
    LayerNorms. Zeros pad both parts to a multiple of NORM_CHUNK.
    """

    def __init__(self, model: nn.Module) -> None:
        params = list(model.parameters())
        decayed, rest = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
        sizes = [_round_up(sum(p.numel() for p in group)) for group in (decayed, rest)]
        device = params[0].device
        self.weights = torch.zeros(sum(sizes), device=device)
        self.grads = torch.zeros_like(self.weights)
        self.tensors = decayed + rest
        for group, start in ((decayed, 0), (rest, sizes[0])):
            offset = start
            for param in group:
                span = slice(offset, offset + param.numel())
                self.weights[span].copy_(param.detach().flatten())
                param.data = self.weights[span].view_as(param)
                param.grad = self.grads[span].view_as(param)
                offset += param.numel()
        self.decayed, self.rest = (nn.Parameter(part) for part in torch.split(self.weights, sizes))
        self.decayed.grad, self.rest.grad = torch.split(self.grads, sizes)


def _round_up(size: int) -> int:
    return -(-size // NORM_CHUNK) * NORM_CHUNK


def make_adamw(flat: FlatParameters, hparams: HParams) -> torch.optim.AdamW:
    """Fused AdamW with decoupled weight decay of the decayed tensors.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    groups: list[dict[str, Any]] = [
        {"params": [flat.decayed], "weight_decay": hparams.weight_decay},
        {"params": [flat.rest], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=hparams.lr, betas=(hparams.beta1, hparams.beta2), eps=hparams.eps, fused=True)


@contextlib.contextmanager
def capturable(optimizer: torch.optim.AdamW) -> Iterator[None]:
    """Lets a CUDA graph capture the optimizer, which torch refuses without this mark. It changes no arithmetic."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:  # an uncaptured step with the mark would warn, and checkpoints stay as they were
        for group in optimizer.param_groups:
            group["capturable"] = False


def state_tensors(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """All that a step of the optimizer changes besides the weights; empty before its first step."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


class Clipping(NamedTuple):
    """What clipping measured, and the divisor of all gradients in the update."""

    norm: Tensor  # global, before clipping
    clipped: Tensor  # bool: whether any gradient was scaled down
    divisor: Tensor  # at least 1


def clip_(flat: FlatParameters, mode: ClipMode, max_norm: float) -> Clipping:
    """Clips gradients to `max_norm`.

    "global" scales all gradients by min(1, max_norm / norm) with one norm over all parameters, as
    torch.nn.utils.clip_grad_norm_ does. It only returns the divisor, which the update applies. "per_tensor" scales each
    tensor in place by its own norm. "none" changes nothing. Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    total = norm(flat.grads)
    one = torch.ones_like(total)
    if mode == "none":
        return Clipping(norm=total, clipped=one.bool().logical_not(), divisor=one)
    if mode == "global":
        divisor = ((total + CLIP_EPS) / max_norm).clamp(min=1.0)
        return Clipping(norm=total, clipped=total > max_norm, divisor=divisor)
    grads = [param.grad for param in flat.tensors if param.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]).float()
    torch._foreach_mul_(grads, list((max_norm / (norms + CLIP_EPS)).clamp(max=1.0)))
    return Clipping(norm=total, clipped=(norms > max_norm).any(), divisor=one)


def update_(optimizer: torch.optim.AdamW, lr: float | Tensor, divisor: Tensor) -> None:
    """One AdamW step at rate `lr` with every gradient divided by `divisor`.

    The fused kernel divides while it reads the gradients (its hook for loss scaling), which saves a pass over them. It
    reads a rate in a tensor on its device, and its own count of steps, when it runs, so a CUDA graph may hold it.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def share_lost_to_bf16(before: Tensor, after: Tensor) -> Tensor:
    """The share of non-zero updates that would leave a bf16 weight unchanged. This is why the weights stay fp32.

    A bf16 number has 8 significant bits: an update below about 1/512 of the weight rounds away.
    """
    stored = before.bfloat16()
    updated = (stored.float() + (after - before)).bfloat16()
    changed = after != before
    return ((updated == stored) & changed).sum() / changed.sum().clamp(min=1)
