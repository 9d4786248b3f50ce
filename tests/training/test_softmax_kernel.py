"""The kernel of the output layer against torch: on a GPU, or in Triton's interpreter if Triton is installed."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernel is defined
pytest.importorskip("triton")
from hpstudy.training.softmax_kernel import softmax_gradient_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("vocab_size", "padded", "dtype", "tolerance"),
    [
        (500, 512, torch.float32, 1e-6),
        (512, 512, torch.float32, 1e-6),
        (50_257, 50_304, torch.float32, 1e-6),  # several blocks
        (50_257, 50_304, torch.bfloat16, 2**-7),  # 8 bits, which the interpreter truncates instead of rounding
    ],
)
def test_loss_and_gradient_are_torchs_in_float64(vocab_size: int, padded: int, dtype: torch.dtype, tolerance: float):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, padded, generator=generator)).to(dtype)
    targets = torch.randint(0, vocab_size, (7,), generator=generator)
    exact = logits.double()
    exact[:, vocab_size:] = -torch.inf
    exact.requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, exact)
    found = logits.clone().to(DEVICE)
    loss = softmax_gradient_(found, targets.to(DEVICE), vocab_size, 0.25)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(found.double().cpu(), 0.25 * gradient, rtol=tolerance, atol=1e-7)
    assert not found[:, vocab_size:].any()


def test_a_large_logit_overflows_nothing():
    logits = torch.tensor([[1e4, -1e4, 0.0, 3e30]]).repeat(2, 16).to(DEVICE)
    loss = softmax_gradient_(logits, torch.tensor([3, 0]).to(DEVICE), 4, 1.0)
    assert loss.item() == pytest.approx(3e30, rel=1e-6)
    assert torch.isfinite(logits).all()
