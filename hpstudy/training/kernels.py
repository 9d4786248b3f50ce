"""The two places where a CPU needs another formulation to be fast. The maths is torch's; tests hold it to that.

On other devices each function is torch's own operation. Times are of one core with AVX512-BF16, torch 2.13.
Shapes: B sequences, T tokens, H heads, D head width, C width, N = B * T predictions, V padded vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_PER_CHUNK = 2**27  # of one matrix product of the output layer on a CPU: 256 MiB in bf16
LOGITS_PER_BLOCK = 2**18  # of one softmax: 1 MiB in fp32, so that its passes stay in a core's cache


def attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """Causal softmax attention, [B, H, T, D].

    torch's fused kernel has a slow backward for bf16 on CPUs: plain matrix products took a fifth of its time at
    T = 128, 40% at 256 and 85% at 1024. In fp32 the fused one is as fast or faster. On a GPU nothing is left to
    choose by time: with deterministic algorithms torch itself leaves cuDNN's kernel out, and takes flash in bf16.
    """
    if q_BHTD.is_cpu and q_BHTD.dtype is torch.bfloat16:
        B, H, T, D = q_BHTD.shape
        q, k, v = (x.reshape(B * H, T, D) for x in (q_BHTD, k_BHTD, v_BHTD))
        future = torch.full((1, T, T), -math.inf, dtype=q.dtype).triu(1)
        weights = torch.softmax(torch.baddbmm(future, q, k.transpose(1, 2), alpha=1 / math.sqrt(D)), dim=-1)
        return torch.bmm(weights, v).view(B, H, T, D)
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)


def output_loss(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int) -> Tensor:
    """Mean cross-entropy in nats, fp32, of the logits hidden @ weight.T with the rows from vocab_size on masked out.

    On CPUs the forward takes the gradients too, chunk by chunk of predictions: one exponential, passes that stay in
    the cache, no logits in fp32 and none kept for the backward. Elsewhere torch.compile keeps those of the product,
    in bf16 under autocast, and takes the softmax in fp32 as it reads them.
    """
    if hidden_NC.is_cpu:
        if not torch.is_grad_enabled():  # of which an autograd.Function is not told
            hidden_NC, weight_VC = hidden_NC.detach(), weight_VC.detach()
        out: Tensor = _OutputLoss.apply(hidden_NC, weight_VC, targets_N, vocab_size)  # type: ignore[no-untyped-call]
        return out
    logits_NV = F.linear(hidden_NC, weight_VC).float()
    if logits_NV.shape[1] > vocab_size:  # not by assignment, which a compiler keeps in fp32 for the backward
        padding_V = torch.arange(logits_NV.shape[1], device=logits_NV.device) >= vocab_size
        logits_NV = logits_NV.masked_fill(padding_V, -torch.inf)
    return F.cross_entropy(logits_NV, targets_N)


class _OutputLoss(torch.autograd.Function):
    """Forward turns the logits into their gradient, (softmax - onehot) / N, in place, and multiplies it out."""

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight_VC.dtype
        hidden, weight = hidden_NC.to(dtype), weight_VC.to(dtype)
        N, V = len(hidden), len(weight)
        rows = max(1, LOGITS_PER_CHUNK // V)
        loss = torch.zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None
        with torch.autocast("cpu", enabled=False):
            for start in range(0, N, rows):
                part = slice(start, start + rows)
                logits = hidden[part] @ weight.T
                loss += _softmax_gradient_(logits, targets_N[part], vocab_size, 1 / N)
                if any(ctx.needs_input_grad):
                    torch.mm(logits, weight, out=d_hidden[part])
                    part_weight = logits.T @ hidden[part]
                    d_weight = part_weight.float() if d_weight is None else d_weight.add_(part_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.hidden_dtype = hidden_NC.dtype
        return loss / N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        factor = grads[0].item()
        if factor != 1.0:  # several micro-batches
            d_hidden, d_weight = d_hidden * factor, d_weight * factor
        return d_hidden.to(ctx.hidden_dtype), d_weight, None, None


def _softmax_gradient_(logits_NV: Tensor, targets_N: Tensor, vocab_size: int, factor: float) -> Tensor:
    """Summed cross-entropy of logits, which become (softmax - onehot) * factor in place."""
    total = torch.zeros((), dtype=torch.float32)
    rows = max(1, LOGITS_PER_BLOCK // logits_NV.shape[1])
    for block, targets in zip(torch.split(logits_NV, rows), torch.split(targets_N, rows), strict=True):
        wide, index = block.float(), targets[:, None]  # in fp32 `wide` is the block itself
        wide[:, vocab_size:] = -torch.inf
        peak = wide.amax(dim=1, keepdim=True)
        total += (peak - wide.gather(1, index)).sum()
        weights = wide.sub_(peak).exp_()
        norm = weights.sum(dim=1, keepdim=True)
        total += norm.log().sum()
        weights.mul_(factor / norm).scatter_add_(1, index, torch.full_like(norm, -factor))
        if block.dtype is not torch.float32:
            block.copy_(weights)
    return total
