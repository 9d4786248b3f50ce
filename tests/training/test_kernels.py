"""The formulations for CPUs against torch's own operations, and the products that they avoid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hpstudy.training.device import Placement
from hpstudy.training.kernels import QUERIES_PER_BLOCK, attention, output_loss

BF16 = Placement(device="cpu", precision="bf16", reason="")
LOSS, GRADIENT = 1e-3, 2e-2  # bf16 keeps 8 bits: 2**-8 = 4e-3 of each number, less of a mean, more of a sum


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The distance of all numbers together, relative to theirs."""
    return (torch.linalg.vector_norm((ours - theirs).float()) / torch.linalg.vector_norm(theirs.float())).item()


@pytest.mark.parametrize("T", [40, QUERIES_PER_BLOCK, 2 * QUERIES_PER_BLOCK + 1])
def test_attention_in_bf16_is_torchs(T: int):
    qkv = [drawn(2, 3, T, 16, dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    wide = [x.detach().float().requires_grad_() for x in qkv]
    weights = drawn(2, 3, T, 16, seed=3).detach()
    ours, theirs = attention(*qkv), F.scaled_dot_product_attention(*qkv, is_causal=True)
    exact = F.scaled_dot_product_attention(*wide, is_causal=True)
    assert gap(ours, exact) < GRADIENT
    assert gap(theirs, exact) < GRADIENT
    gradients, torchs = (torch.autograd.grad((y.float() * weights).sum(), qkv) for y in (ours, theirs))
    assert not torch.equal(gradients[0], torchs[0])  # another formulation
    exacts = torch.autograd.grad((exact * weights).sum(), wide)
    for mine, exact_ in zip(gradients, exacts, strict=True):
        assert gap(mine, exact_) < GRADIENT


@pytest.mark.parametrize("vocab_size", [500, 512])
def test_the_output_loss_in_bf16_is_torchs(vocab_size: int):
    hidden, weight = drawn(40, 16), drawn(512, 16, seed=1)
    targets = torch.randint(0, vocab_size, (40,), generator=torch.Generator().manual_seed(2))
    with BF16.autocast():
        ours = output_loss(hidden, weight, targets, vocab_size)
        theirs = F.cross_entropy(F.linear(hidden, weight)[:, :vocab_size].float(), targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=LOSS)
    for mine, torchs in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True):
        assert gap(mine, torchs) < GRADIENT


def test_without_gradients_the_output_loss_is_one_product_and_the_same_bits():
    hidden, weight, targets = drawn(40, 16), drawn(512, 16, seed=1), torch.arange(40)
    expected = output_loss(hidden, weight, targets, 500)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = output_loss(hidden, weight, targets, 500)
    assert counter.get_total_flops() == 2 * 40 * 16 * 512
    assert torch.equal(found, expected.detach())
