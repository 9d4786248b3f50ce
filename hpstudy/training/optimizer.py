"""Weights in one flat buffer, grouped AdamW over it, and gradient clipping.

In one buffer, AdamW, the norms and the update-to-weight ratio are each one pass over contiguous memory instead of a
call per tensor. AdamW works element by element, so the numbers are those of the usual parameter groups.
"""

from __future__ import annotations

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
    LayerNorms. Zeros pad both parts to a multiple of NORM_CHUNK. Beside the gradients is room for the step's loss.
    """

    def __init__(self, model: nn.Module) -> None:
        params = list(model.parameters())
        decayed, rest = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
        sizes = [_round_up(sum(p.numel() for p in group)) for group in (decayed, rest)]
        device = params[0].device
        self.weights = torch.zeros(sum(sizes), device=device)
        self.grads_and_loss = torch.zeros(sum(sizes) + 1, device=device)  # in one piece, so that ranks sum both at once
        self.grads, self.loss = self.grads_and_loss[:-1], self.grads_and_loss[-1]
        self.tensors = decayed + rest
        for group, start in ((decayed, 0), (rest, sizes[0])):
            offset = start
            for param in group:
                span = slice(offset, offset + param.numel())
                self.weights[span].copy_(param.detach().flatten())
                param.data = self.weights[span].view_as(param)
                param.grad = self.grads[span].view_as(param)
                offset += param.numel()
        self.decayed, self.rest = torch.split(self.weights, sizes)
        self.decayed_grads, self.rest_grads = torch.split(self.grads, sizes)


def _round_up(size: int) -> int:
    return -(-size // NORM_CHUNK) * NORM_CHUNK


class AdamW:
    """AdamW with decoupled weight decay of the decayed tensors, by torch's fused kernel.

    torch.optim.AdamW calls the same kernel, but first imports torch's compiler (817 modules, 1.4 s), and spends 0.2 ms
    of Python a step. All state is on the weights' device, so that a CUDA graph may hold a step.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, flat: FlatParameters, hparams: HParams) -> None:
        self._hparams = hparams
        self._parts = ((flat.decayed, flat.decayed_grads, hparams.weight_decay), (flat.rest, flat.rest_grads, 0.0))
        self._states = [
            {
                "step": torch.zeros((), device=weights.device),  # updates done
                "exp_avg": torch.zeros_like(weights),
                "exp_avg_sq": torch.zeros_like(weights),
            }
            for weights, _, _ in self._parts
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step changes besides the weights."""
        return [tensor for state in self._states for tensor in state.values()]

    def step(self, lr: float | Tensor, divisor: Tensor) -> None:
        """One update at rate `lr`, which a GPU reads from its own memory, with every gradient divided by `divisor`.

        The kernel divides while it reads the gradients (its hook for loss scaling), which saves a pass over them.
        """
        for (weights, grads, weight_decay), state in zip(self._parts, self._states, strict=True):
            state["step"].add_(1)
            torch._fused_adamw_(
                [weights],
                [grads],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=lr,
                beta1=self._hparams.beta1,
                beta2=self._hparams.beta2,
                weight_decay=weight_decay,
                eps=self._hparams.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors, named as in torch.optim.AdamW's state_dict."""
        return {"state": dict(enumerate(self._states))}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Takes over a state of `state_dict`, or of torch.optim.AdamW's."""
        for number, state in enumerate(self._states):
            for name, tensor in state.items():
                tensor.copy_(found["state"][number][name])


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


@torch.no_grad()
def share_lost_to_bf16(before: Tensor, after: Tensor) -> Tensor:
    """The share of non-zero updates that would leave a bf16 weight unchanged. This is why the weights stay fp32.

    A bf16 number has 8 significant bits: an update below about 1/512 of the weight rounds away.
    """
    stored = before.bfloat16()
    updated = (stored.float() + (after - before)).bfloat16()
    changed = after != before
    return ((updated == stored) & changed).sum() / changed.sum().clamp(min=1)
