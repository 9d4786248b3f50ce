"""The peers' models in GPT-2's shape, built by their own libraries, each as a function from ids to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpstudy.spec import ModelShape
from hpstudy.training.device import Placement
from tests.bench.notebook import Forward, NotebookGPT
from tests.bench.race import Name


def build(
    name: Name, shape: ModelShape, vocab_size: int, context: int, placement: Placement
) -> tuple[nn.Module, Forward]:
    """A peer's model on the device and its forward pass, compiled on a GPU, as is usual there."""
    match name:
        case "notebook" | "notebook, fp32, fused":
            model: nn.Module = NotebookGPT(shape, vocab_size, context)
        case "transformers":
            model = _transformers(shape, vocab_size, context)
        case "litgpt":
            model = _litgpt(shape, vocab_size, context)
        case _:
            raise AssertionError(f"{name} is no peer")
    model.to(placement.device).train()
    run = torch.compile(model) if placement.is_cuda else model

    def forward(tokens: Tensor) -> Tensor:
        output = run(tokens)
        logits: Tensor = output.logits if name == "transformers" else output
        return logits

    return model, forward


def _transformers(shape: ModelShape, vocab_size: int, context: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _litgpt(shape: ModelShape, vocab_size: int, context: int) -> nn.Module:
    """litgpt's nearest to GPT-2: sequential residuals, biases, tied weights; rotary instead of learned positions."""
    from litgpt import GPT, Config

    config = Config(
        block_size=context,
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        parallel_residual=False,
        gelu_approximate="tanh",
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    tied: nn.Module = model
    return tied
