"""Attention and the output layer, formulated so that they are fast. Tests compare both with torch.

CPU times are from one core with AVX512-BF16 and torch 2.13, GPU times from an H100 with torch 2.11 (tests/README.md).
Shapes: B sequences, T tokens, H heads, D head width, C width, N = B * T predictions, V padded vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

LOGITS_PER_CHUNK = {"cpu": 2**27, "cuda": 2**30}  # of one matrix product of the output layer; 256 MiB, 2 GiB in bf16
LOGITS_PER_BLOCK = 2**18  # of one softmax on a CPU: 1 MiB in fp32, so that its passes stay in a core's cache
LOG2_E = math.log2(math.e)
QUERIES_PER_BLOCK = 256  # of attention on a CPU; blocks of 128 are as fast at T = 256, and slower at 1024
FLEX_MULTIPLE = 128  # tokens; the block size of FlexAttention
# True of a causal mask: every query sees a key, and the blocks of keys that it sees follow each other
CAUSAL = {"ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": True}
# FlexAttention's fastest blocks of the twelve pairs tried for D = 64 on an H100; elsewhere the compiler's own are taken
HOPPER_BLOCKS = {
    "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3,
    "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32,
    "bwd_num_warps": 4, "bwd_num_stages": 3,
}  # fmt: skip

HAS_TRITON = find_spec("triton") is not None  # torch's wheels for CUDA bring it

_causal_masks: dict[int, BlockMask] = {}  # by T
_has_hopper_blocks = False


def attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """Causal softmax attention, [B, H, T, D].

    On CPUs torch's fused kernel has a slow backward in bf16: plain matrix products took a fifth of its time at T = 128,
    40% at 256 and, in blocks of queries, 74% at 1024. In fp32 the fused kernel is as fast or faster.
    On GPUs, in compiled code with a mask from `prepare_attention`, FlexAttention is deterministic and faster than the
    deterministic flash attention that torch would take (tests/README.md). If determinism is not asked for, see
    `fastest_attention`.
    """
    if q_BHTD.is_cpu and q_BHTD.dtype is torch.bfloat16:
        B, H, T, D = q_BHTD.shape
        q, k, v = (x.reshape(B * H, T, D) for x in (q_BHTD, k_BHTD, v_BHTD))
        parts = []
        for start in range(0, T, QUERIES_PER_BLOCK):
            end = min(start + QUERIES_PER_BLOCK, T)  # no query of the block sees a later key
            future = torch.full((1, end - start, end), -math.inf, dtype=q.dtype).triu(start + 1)
            scores = torch.baddbmm(future, q[:, start:end], k[:, :end].transpose(1, 2), alpha=1 / math.sqrt(D))
            parts.append(torch.bmm(torch.softmax(scores, dim=-1), v[:, :end]))
        return torch.cat(parts, dim=1).view(B, H, T, D)
    T, D = q_BHTD.shape[-2:]
    flexible = torch.compiler.is_compiling() and torch.are_deterministic_algorithms_enabled()
    if flexible and q_BHTD.dtype is torch.bfloat16 and D >= 16 and T in _causal_masks:
        options: Any = CAUSAL | (HOPPER_BLOCKS if D == 64 and _has_hopper_blocks else {})
        out = flex_attention(q_BHTD, k_BHTD, v_BHTD, block_mask=_causal_masks[T], kernel_options=options)
        assert isinstance(out, Tensor)
        return out
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)


def fastest_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Has torch's fused attention take cuDNN's kernels on a GPU that need not be deterministic.

    Their backward does not repeat to the last bit. Inputs that cuDNN refuses, as in fp32, go to the next kernel.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return contextlib.nullcontext()
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    chosen: contextlib.AbstractContextManager[None] = sdpa_kernel(kernels, set_priority=True)
    return chosen


def prepare_attention(context: int, device: str) -> None:
    """Builds the causal mask that `attention` uses in compiled code on a GPU, for sequences of `context` tokens."""
    global _has_hopper_blocks
    if context % FLEX_MULTIPLE or context in _causal_masks:
        return
    _has_hopper_blocks = device.startswith("cuda") and torch.cuda.get_device_capability(device) == (9, 0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # the mask's construction scatters ones, which repeats anyway
    try:
        _causal_masks[context] = create_block_mask(
            lambda _b, _h, q, k: q >= k, None, None, context, context, device=device, BLOCK_SIZE=FLEX_MULTIPLE
        )
    finally:
        torch.use_deterministic_algorithms(deterministic)


def output_loss(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int) -> Tensor:
    """Mean cross-entropy in nats, fp32, of the logits hidden @ weight.T. Columns from vocab_size on are masked out.

    The forward computes the gradients too, in chunks of predictions: one exponential, and no logits kept for the
    backward. On a GPU without Triton it is torch's own operation.
    """
    if hidden_NC.is_cuda and not HAS_TRITON:
        logits_NV = F.linear(hidden_NC, weight_VC).float()[:, :vocab_size]
        return F.cross_entropy(logits_NV, targets_N)
    if not torch.is_grad_enabled():  # a custom Function cannot see no_grad
        hidden_NC, weight_VC = hidden_NC.detach(), weight_VC.detach()
    out: Tensor = _OutputLoss.apply(hidden_NC, weight_VC, targets_N, vocab_size)  # type: ignore[no-untyped-call]
    return out


class _OutputLoss(torch.autograd.Function):
    """The forward turns the logits into their gradient, (softmax - onehot) / N, in place, and multiplies it out."""

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int) -> Tensor:
        kind = hidden_NC.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VC.dtype
        hidden, weight = hidden_NC.to(dtype), weight_VC.to(dtype)
        N, V = len(hidden), len(weight)
        rows = max(1, LOGITS_PER_CHUNK[kind] // V)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None
        with torch.autocast(kind, enabled=False):
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
        if grads[0].is_cuda:  # reading the factor would wait for the device
            return d_hidden.to(ctx.hidden_dtype) * grads[0], d_weight * grads[0], None, None
        factor = grads[0].item()
        if factor != 1.0:  # several micro-batches
            d_hidden, d_weight = d_hidden * factor, d_weight * factor
        return d_hidden.to(ctx.hidden_dtype), d_weight, None, None


def _softmax_gradient_(logits_NV: Tensor, targets_N: Tensor, vocab_size: int, factor: float) -> Tensor:
    """The summed cross-entropy of logits, fp32. Overwrites them with (softmax - onehot) * factor."""
    if logits_NV.is_cuda:
        from hpstudy.training.softmax_kernel import softmax_gradient_  # here: machines without a GPU have no Triton

        return softmax_gradient_(logits_NV, targets_N, vocab_size, factor)
    total = torch.zeros((), dtype=torch.float32)
    rows = max(1, LOGITS_PER_BLOCK // logits_NV.shape[1])
    for block, targets in zip(torch.split(logits_NV, rows), torch.split(targets_N, rows), strict=True):
        wide, index = block.float(), targets[:, None]  # for fp32 logits `wide` is the block itself
        wide[:, vocab_size:] = -torch.inf
        peak = wide.amax(dim=1, keepdim=True)
        total += (peak - wide.gather(1, index)).sum()
        # exp(x - peak) as a power of 2, by one multiply-add: torch's exp2 takes a third of the time of its exp
        weights = torch.add(-LOG2_E * peak, wide, alpha=LOG2_E, out=wide).exp2_()
        norm = weights.sum(dim=1, keepdim=True)
        total += norm.log().sum()
        weights.mul_(factor / norm).scatter_add_(1, index, torch.full_like(norm, -factor))
        if block.dtype is not torch.float32:
            block.copy_(weights)
    return total
