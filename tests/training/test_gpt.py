"""The model against transformers' GPT-2, and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hpstudy.spec import PRESETS, ModelShape
from hpstudy.training.gpt import GPT, initialize

SHAPE = ModelShape(layers=3, heads=4, width=64)
VOCAB, CONTEXT = 1000, 96  # 1000 is no multiple of 64, so padding is in play


@pytest.fixture
def model() -> GPT:
    model = GPT(SHAPE, VOCAB, CONTEXT)
    initialize(model, seed=3)
    with torch.no_grad():  # biases and gains that matter, so that a missing one would show
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, CONTEXT + 1), generator=torch.Generator().manual_seed(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_logits_equal_those_of_transformers_gpt2(model: GPT, tokens: torch.Tensor):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 3, "n_head": 4}
    theirs = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).eval()
    ours = {name: p.detach() for name, p in model.named_parameters()}
    ours["wte.weight"] = ours["wte.weight"][:VOCAB]
    transposed = {n: p.T if p.ndim == 2 and ("c_" in n) else p for n, p in ours.items()}  # theirs is Conv1D: [in, out]
    missing = theirs.transformer.load_state_dict(transposed, strict=False)
    assert not missing.unexpected_keys
    assert not [key for key in missing.missing_keys if not key.endswith("attn.bias")]
    with torch.no_grad():
        difference = (model.logits(tokens[:, :-1]) - theirs(tokens[:, :-1]).logits).abs().max()
    assert difference <= 1e-4


def test_loss_is_the_cross_entropy_over_the_unpadded_vocabulary(model: GPT, tokens: torch.Tensor):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = model.logits(inputs)
    assert logits.shape == (2, CONTEXT, VOCAB)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(inputs, targets), expected, rtol=1e-6, atol=1e-6)


def test_padding_rows_get_no_gradient(model: GPT, tokens: torch.Tensor):
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert model.wte.weight.shape[0] == 1024
    assert model.wte.weight.grad is not None
    assert torch.count_nonzero(model.wte.weight.grad[VOCAB:]) == 0
    assert torch.count_nonzero(model.wte.weight.grad[:VOCAB]) > 0


def test_a_prediction_does_not_see_the_future(model: GPT, tokens: torch.Tensor):
    changed = tokens.clone()
    changed[:, 50:] = 7
    with torch.no_grad():
        before, after = model.logits(tokens[:, :-1]), model.logits(changed[:, :-1])
    torch.testing.assert_close(before[:, :50], after[:, :50])
    assert not torch.allclose(before[:, 51:], after[:, 51:])


def test_gpt_125m_has_gpt2s_parameter_count():
    with torch.device("meta"):
        assert GPT(PRESETS["gpt-125m"], 50257, 1024).num_params == 124_439_808


@pytest.mark.parametrize("preset", PRESETS)
def test_counted_parameters_match_the_shapes_formula(preset: str):
    with torch.device("meta"):
        model = GPT(PRESETS[preset], 4096, 256)
    assert model.num_params == PRESETS[preset].num_params(4096, 256)


def test_initial_weights_have_gpt2s_spread():
    shape = ModelShape(layers=8, heads=4, width=256)
    model = GPT(shape, 2000, 128)
    initialize(model, seed=0)
    std = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    assert std["h.3.attn.c_attn.weight"] == pytest.approx(0.02, rel=0.02)
    assert std["h.3.mlp.c_fc.weight"] == pytest.approx(0.02, rel=0.02)
    assert std["h.3.attn.c_proj.weight"] == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    assert std["h.3.mlp.c_proj.weight"] == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
    assert model.wte.weight[:2000].std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.count_nonzero(model.wte.weight[2000:]) == 0
    assert all(torch.count_nonzero(p) == 0 for n, p in model.named_parameters() if n.endswith("bias"))


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (GPT(SHAPE, VOCAB, CONTEXT) for _ in range(3))
    initialize(first, 1)
    initialize(again, 1)
    initialize(other, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.wte.weight, other.wte.weight)
