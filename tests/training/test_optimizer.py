"""Clipping, groups and AdamW against hand computations and torch's own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hpstudy.hparams import GPT3, HParams
from hpstudy.spec import ModelShape
from hpstudy.training.gpt import GPT, initialize
from hpstudy.training.optimizer import AdamW, FlatParameters, clip_, norm, share_lost_to_bf16

ONE = torch.tensor(1.0)
SHAPE = ModelShape(layers=2, heads=2, width=32)


def model_with_gradients(scale: float = 1.0) -> tuple[GPT, FlatParameters]:
    model = GPT(SHAPE, 100, 16)
    initialize(model, seed=0)
    flat = FlatParameters(model)
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        assert param.grad is not None
        param.grad.copy_(scale * torch.randn(param.shape, generator=generator))
    return model, flat


def plain_copy(model: GPT) -> GPT:
    copy = GPT(SHAPE, 100, 16)
    with torch.no_grad():
        for theirs, ours in zip(copy.parameters(), model.parameters(), strict=True):
            theirs.copy_(ours)
            theirs.grad = ours.grad.clone()
    return copy


def test_flat_buffers_are_the_models_own_weights_and_gradients():
    model, flat = model_with_gradients()
    flat.weights.add_(1.0)
    flat.grads.mul_(2.0)
    reference, _ = model_with_gradients()
    for ours, before in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, before + 1.0)
        torch.testing.assert_close(ours.grad, before.grad * 2.0)


def test_only_matrices_and_embeddings_decay_and_the_tied_one_appears_once():
    model, flat = model_with_gradients()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    assert 0 <= flat.decayed.numel() - matrices < 4096  # the rest is zeros that pad the buffer
    assert 0 <= flat.rest.numel() - sum(p.numel() for p in model.parameters() if p.ndim < 2) < 4096
    ids = [id(p) for p in model.parameters()]
    assert len(ids) == len(set(ids)) == len(flat.tensors)


def test_biases_and_gains_do_not_shrink_when_gradients_are_zero():
    model, flat = model_with_gradients(scale=0.0)
    with torch.no_grad():
        model.h[0].mlp.c_fc.bias.fill_(1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    AdamW(flat, replace(GPT3, weight_decay=0.5)).step(0.1, ONE)
    for name, param in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if param.ndim >= 2 else before[name]
        torch.testing.assert_close(param, expected)


def test_global_clipping_by_hand():
    model = nn.Linear(1, 2, bias=True)
    flat = FlatParameters(model)
    model.weight.grad.copy_(torch.tensor([[3.0], [0.0]]))
    model.bias.grad.copy_(torch.tensor([0.0, 4.0]))
    total, clipped, divisor = clip_(flat, "global", 1.0)
    flat.grads.div_(divisor)
    assert total.item() == pytest.approx(5.0)  # sqrt(3² + 4²): one norm over all tensors
    assert clipped
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6], [0.0]]))
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.0, 0.8]))


def test_per_tensor_clipping_by_hand():
    model = nn.Linear(1, 2, bias=True)
    flat = FlatParameters(model)
    model.weight.grad.copy_(torch.tensor([[3.0], [0.0]]))
    model.bias.grad.copy_(torch.tensor([0.0, 0.5]))
    total, clipped, _ = clip_(flat, "per_tensor", 1.0)
    assert total.item() == pytest.approx(math.sqrt(9.25))  # what is logged is the global norm before clipping
    assert clipped
    torch.testing.assert_close(model.weight.grad, torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize(("mode", "max_norm"), [("none", 0.1), ("global", 1e9), ("per_tensor", 1e9)])
def test_gradients_below_the_limit_or_unclipped_stay_as_they_are(mode, max_norm):
    _, flat = model_with_gradients()
    before = flat.grads.clone()
    _, clipped, divisor = clip_(flat, mode, max_norm)
    assert not clipped
    assert divisor == 1.0
    assert torch.equal(flat.grads, before)


def test_global_clipping_equals_torchs_clip_grad_norm():
    model, flat = model_with_gradients()
    reference = plain_copy(model)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    total, _, divisor = clip_(flat, "global", 1.0)
    flat.grads.div_(divisor)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-9)


def test_dividing_inside_the_update_equals_dividing_before_it():
    updated = []
    for inside in (True, False):
        _, flat = model_with_gradients()
        divisor = torch.tensor(7.0)
        if not inside:
            flat.grads.div_(divisor)
        AdamW(flat, GPT3).step(1e-2, divisor if inside else ONE)
        updated.append(flat.weights)
    assert torch.equal(*updated)


def test_updates_have_the_bits_of_torchs_adamw_whose_checkpoints_load():
    flats = [model_with_gradients()[1] for _ in range(2)]
    hparams = replace(GPT3, beta1=0.8, beta2=0.97, weight_decay=0.3)
    ours, theirs = AdamW(flats[0], hparams), torchs_adamw(flats[1], hparams)
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        if step == 3:  # goes on from a checkpoint of torch's optimizer
            ours = AdamW(flats[0], hparams)
            ours.load_state_dict(theirs.state_dict())
        gradients = torch.randn(flats[0].grads.shape, generator=generator)
        for flat in flats:
            flat.grads.copy_(gradients)
        divisor, lr = torch.tensor(1.0 + step), 1e-2 / (1 + step)
        ours.step(lr, divisor)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.grad_scale = divisor
        theirs.step()
        assert torch.equal(flats[0].weights, flats[1].weights)
    for number, state in theirs.state_dict()["state"].items():
        assert all(torch.equal(ours.state_dict()["state"][number][name], value) for name, value in state.items())


def torchs_adamw(flat: FlatParameters, hparams: HParams) -> torch.optim.AdamW:
    groups = []
    for weights, grads, decay in (
        (flat.decayed, flat.decayed_grads, hparams.weight_decay),
        (flat.rest, flat.rest_grads, 0.0),
    ):
        param = nn.Parameter(weights)
        param.grad = grads
        groups.append({"params": [param], "weight_decay": decay})
    betas = (hparams.beta1, hparams.beta2)
    return torch.optim.AdamW(groups, lr=hparams.lr, betas=betas, eps=hparams.eps, fused=True)


def test_the_norm_of_many_numbers_is_exact_to_fp32():
    flat = torch.randn(4096 * 2000, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert norm(flat).item() == pytest.approx(flat.double().norm().item(), rel=1e-6)


def test_a_constant_factor_on_the_gradient_cancels_in_adam_so_clipping_does_not_shrink_updates():
    """m / sqrt(v) is homogeneous of degree 0: gradients a thousand times smaller give the same updates."""
    updates = []
    for scale in (1.0, 1e-3):
        _, flat = model_with_gradients(scale)
        optimizer = AdamW(flat, replace(GPT3, eps=1e-20, weight_decay=0.0))
        before = flat.weights.clone()
        for _ in range(5):
            optimizer.step(1e-2, ONE)
        updates.append(flat.weights - before)
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-7)
    assert norm(updates[0]) > 0.1


def test_share_lost_to_bf16_counts_updates_below_half_a_step_of_bf16():
    before = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0])
    after = before + torch.tensor([1e-4, 1e-2, 0.0, 1e-4, 1e-3])
    # lost: 1e-4 at 1.0 and 1e-3 at 2.0; kept: 1e-2 at 1.0 and 1e-4 at 0.0; the zero update does not count
    assert share_lost_to_bf16(before, after).item() == pytest.approx(2 / 4)
