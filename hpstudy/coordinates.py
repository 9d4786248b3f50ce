"""Scale-free coordinates: what [search] may vary in place of raw hyperparameters, and the conversions both ways.

One range suits models and runs of any size: a learning rate as a multiple of Step Law's, averages, weight decay and
batch as shares of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpstudy.hparams import COORDINATES, RAW_KEY, HParams, decay_timescale_steps, halflife_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSize:
    """The sizes that conversions take."""

    weights: int  # N, without token and position embeddings
    tokens: int  # D, of the run
    batch_unit: int  # tokens of the smallest batch: one sequence for each rank


def step_law_lr(weights: int, tokens: int) -> float:
    """lr = 1.79 N^-0.713 D^0.307, with which the loss is lowest; N without embeddings.

    Source: Li et al. 2025, arXiv:2503.04715, equation 1.
    """
    lr: float = 1.79 * weights**-0.713 * tokens**0.307
    return lr


def batch_of(fraction: float, size: RunSize) -> int:
    """The batch in tokens nearest to a fraction of the run on a log scale: batch_unit times a power of two.

    At most the run, if that holds one batch_unit.
    """
    most = max(math.floor(math.log2(size.tokens / size.batch_unit)), 0)
    power = round(math.log2(fraction * size.tokens / size.batch_unit))
    return size.batch_unit << min(max(power, 0), most)


def raw_values(values: Mapping[str, Any], size: RunSize) -> dict[str, Any]:
    """The values with each coordinate replaced by the key that it stands for.

    `values` also hold the raw lr and batch_tokens, unless coordinates stand for them. A half-life of h of the run gives
    beta = 0.5^(B / hD), a timescale of tau gives weight_decay = B / (lr tau D).
    """
    raw = {key: value for key, value in values.items() if key not in COORDINATES}
    if "batch_fraction" in values:
        raw["batch_tokens"] = batch_of(values["batch_fraction"], size)
    if "lr_over_rule" in values:
        raw["lr"] = values["lr_over_rule"] * step_law_lr(size.weights, size.tokens)
    batch_share = raw["batch_tokens"] / size.tokens
    for key in ("beta1_halflife", "beta2_halflife"):
        if key in values:
            raw[RAW_KEY[key]] = 0.5 ** (batch_share / values[key])
    if "weight_decay_timescale" in values:
        raw["weight_decay"] = batch_share / values["weight_decay_timescale"] / raw["lr"]
    return raw


def coordinate(key: str, hparams: HParams, size: RunSize) -> float:
    """A coordinate of given hyperparameters: the inverse of `raw_values`, up to rounding; a batch's is exact.

    The timescale is infinite without weight decay.
    """
    match key:
        case "lr_over_rule":
            return hparams.lr / step_law_lr(size.weights, size.tokens)
        case "weight_decay_timescale":
            return decay_timescale_steps(hparams.lr, hparams.weight_decay) * hparams.batch_tokens / size.tokens
        case "batch_fraction":
            return hparams.batch_tokens / size.tokens
        case _:
            beta = hparams.beta1 if key == "beta1_halflife" else hparams.beta2
            return halflife_tokens(beta, hparams.batch_tokens) / size.tokens
