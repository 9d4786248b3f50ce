"""GPT-2's architecture: learned positions, pre-LayerNorm, tanh GELU, biases, tied embeddings, no dropout.

Sources: Radford et al. 2019 (GPT-2) and Brown et al. 2020, arXiv:2005.14165, section 2.1. Parameter names and
shapes follow GPT-2's (linear weights transposed: [out, in]).
Shapes: B sequences, T tokens of context, C width, H heads, D = C / H, V vocabulary padded to a multiple of 64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpstudy.spec import ModelShape
from hpstudy.training.kernels import attention, fastest_attention, output_loss, prepare_attention

INIT_STD = 0.02
MAX_GRAPHS = 256  # of the blocks, one per shape of inputs
VOCAB_MULTIPLE = 64  # matrix products are fastest on aligned sizes; the softmax masks the padding out


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        B, T, C = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = self.c_attn(x_BTC).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y_BHTD = attention(q_BHTD, k_BHTD, v_BHTD)
        out: Tensor = self.c_proj(y_BHTD.transpose(1, 2).reshape(x_BTC.shape))
        return out


class MLP(nn.Module):
    """Two linear layers with a hidden width of 4 C."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x_BTC), approximate="tanh"))
        return out


class Block(nn.Module):
    """One layer: attention and MLP, each with its LayerNorm before and its residual connection around."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC))
        out: Tensor = x_BTC + self.mlp(self.ln_2(x_BTC))
        return out


class GPT(nn.Module):
    """A decoder-only transformer that returns its loss. The output layer shares the embedding's weights."""

    def __init__(self, shape: ModelShape, vocab_size: int, context: int) -> None:
        super().__init__()
        self.shape = shape
        self.vocab_size = vocab_size
        padded = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.wte = nn.Embedding(padded, shape.width)
        self.wpe = nn.Embedding(context, shape.width)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)

    @property
    def num_params(self) -> int:
        """Parameters without the vocabulary's padding; the tied embedding counts once."""
        padding = (self.wte.num_embeddings - self.vocab_size) * self.shape.width
        return sum(p.numel() for p in self.parameters()) - padding

    def compile_blocks(self) -> None:
        """Compiles the blocks, with one graph for all of them, which torch keeps on disk.

        The rest stays as it is: the output layer has its own kernel, and torch's own gradient of an embedding is faster
        than the one that the compiler takes to be deterministic (tests/README.md).
        """
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(deterministic)  # sets the compiler's switch, too
        torch._dynamo.config.recompile_limit = MAX_GRAPHS  # beyond its limit torch silently stops compiling
        prepare_attention(self.wpe.num_embeddings, str(self.wpe.weight.device))
        for block in self.h:
            block.compile(dynamic=False)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> final hidden states [B, T, C]."""
        x_BTC: Tensor = self.wte(tokens_BT) + self.wpe.weight[: tokens_BT.shape[1]]
        with fastest_attention(x_BTC.device):
            for block in self.h:
                x_BTC = block(x_BTC)
        out: Tensor = self.ln_f(x_BTC)
        return out

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> logits [B, T, vocab_size], without the padding."""
        return F.linear(self.hidden(tokens_BT), self.wte.weight)[..., : self.vocab_size]

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats, fp32, over all B * T predictions. Targets must be below vocab_size."""
        return output_loss(self.hidden(tokens_BT).flatten(0, 1), self.wte.weight, targets_BT.flatten(), self.vocab_size)


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """Draws new weights in place: normal with std 0.02, residual projections scaled by 1/sqrt(2 * layers).

    Biases and the embedding's padding are 0, LayerNorm is the identity. The weights are drawn on the CPU, without the
    padding, so that a seed gives the same weights on every device. Source: Radford et al. 2019, section 2.3.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = INIT_STD / math.sqrt(2 * model.shape.layers)
    for name, param in model.named_parameters():
        if param.ndim < 2:
            is_gain = name.endswith("weight")  # a LayerNorm's gain; other tensors of one dimension are biases
            param.fill_(1.0 if is_gain else 0.0)
            continue
        rows = model.vocab_size if name == "wte.weight" else param.shape[0]
        std = residual_std if name.endswith("c_proj.weight") else INIT_STD
        drawn = torch.empty(rows, param.shape[1]).normal_(0.0, std, generator=generator)
        param[:rows].copy_(drawn)
        param[rows:].zero_()
