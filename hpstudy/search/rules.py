"""Published rules: formulas that predict good hyperparameters from the model's size, a run's tokens and its batch.

N counts weights, D the tokens of a run, B those of a batch. Each rule states what it was fitted to; it may be used
outside, which `PublishedRule.outside` tells. A prediction is what the formula gives, in no range of a study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpstudy.coordinates import step_law_lr
from hpstudy.hparams import GPT3, HParams, halflife_tokens
from hpstudy.study.schema import RULE_KEYS, RuleName

MOST_OF_RUN = 0.1  # of a run's tokens: the longest half-life of an average that the run can fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What rules are told of a study besides hyperparameters."""

    weights: int  # N, without token and position embeddings
    all_weights: int  # N with them
    tokens: int | None  # D; None while a budget in seconds is not measured yet


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRule:
    """A rule with its source and with what it was fitted to."""

    name: RuleName
    source: str
    predict: Callable[[Sizes, HParams], dict[str, float]]  # values by key, beside a trial's other hyperparameters
    fitted_weights: tuple[float, float] | None = None  # the smallest and the largest N; None: none is stated
    fitted_tokens: tuple[float, float] | None = None  # likewise D
    with_embeddings: bool = False  # whether its N counts the embeddings

    @property
    def keys(self) -> tuple[str, ...]:
        """The hyperparameters that it predicts."""
        return RULE_KEYS[self.name]

    def weights(self, sizes: Sizes) -> int:
        """The N that it takes."""
        return sizes.all_weights if self.with_embeddings else sizes.weights

    def outside(self, sizes: Sizes) -> tuple[bool, bool]:
        """Whether the model's N and the run's D are outside of what it was fitted to."""
        return _beyond(self.weights(sizes), self.fitted_weights), _beyond(sizes.tokens, self.fitted_tokens)


def step_law(sizes: Sizes, _hparams: HParams) -> dict[str, float]:
    """lr = 1.79 N^-0.713 D^0.307 and B = 0.58 D^0.571 tokens, at which the loss is lowest.

    N without embeddings. Nothing while D is unknown. Source: Li et al. 2025, arXiv:2503.04715, equation 1.
    """
    if sizes.tokens is None:
        return {}
    return {
        "lr": step_law_lr(sizes.weights, sizes.tokens),
        "batch_tokens": 0.58 * sizes.tokens**0.571,
    }


def power_lines(sizes: Sizes, hparams: HParams) -> dict[str, float]:
    """weight_decay = B / (lr D tau), with which the timescale of AdamW is tau = 1.08 (D/N)^-0.527 of the run.

    N with embeddings, as the paper's models are named. Nothing while D is unknown.
    Source: Bergsma et al. 2025, arXiv:2505.13738, section 2.
    """
    if sizes.tokens is None:
        return {}
    tau = 1.08 * (sizes.tokens / sizes.all_weights) ** -0.527
    return {"weight_decay": hparams.batch_tokens / (hparams.lr * sizes.tokens * tau)}


def half_life(sizes: Sizes, hparams: HParams) -> dict[str, float]:
    """beta2 = 0.95^(B / 2^19): GPT-3's average of squared gradients, over as many tokens at another batch.

    That is 7.1M tokens. In a run of less than ten times as many the half-life is a tenth of the run, which is no part
    of the source: a longer average would never fill. The source keeps beta1.
    Source: Marek et al. 2025, arXiv:2507.07101.
    """
    tokens = halflife_tokens(GPT3.beta2, GPT3.batch_tokens)
    if sizes.tokens is not None:
        tokens = min(tokens, MOST_OF_RUN * sizes.tokens)
    return {"beta2": 0.5 ** (hparams.batch_tokens / tokens)}


def sqrt_batch(_sizes: Sizes, hparams: HParams) -> dict[str, float]:
    """lr = 6e-4 (B / 2^19)^0.5, from GPT-3's at its own batch. Source: Malladi et al. 2022, arXiv:2205.10287."""
    return {"lr": GPT3.lr * math.sqrt(hparams.batch_tokens / GPT3.batch_tokens)}


def batch_03(_sizes: Sizes, hparams: HParams) -> dict[str, float]:
    """lr = 6e-4 (B / 2^19)^0.3, from GPT-3's at its own batch. Source: Marek et al. 2025, arXiv:2507.07101."""
    return {"lr": GPT3.lr * (hparams.batch_tokens / GPT3.batch_tokens) ** 0.3}


def decay_to_zero(_sizes: Sizes, _hparams: HParams) -> dict[str, float]:
    """The learning rate reaches 0 at the end of the run; in the source on a line, here on a cosine.

    Source: Bergsma et al. 2025, arXiv:2502.15938.
    """
    return {"min_lr_fraction": 0.0, "decay_fraction": 1.0}


_PUBLISHED = (
    PublishedRule(
        name="step-law",
        source="arXiv:2503.04715",
        predict=step_law,
        fitted_weights=(60e6, 1e9),
        fitted_tokens=(2e9, 100e9),
    ),
    PublishedRule(
        name="power-lines",
        source="arXiv:2505.13738",
        predict=power_lines,
        fitted_weights=(111e6, 3.3e9),
        with_embeddings=True,
    ),
    PublishedRule(name="half-life", source="arXiv:2507.07101", predict=half_life, fitted_weights=(30e6, 1.3e9)),
    PublishedRule(name="sqrt-batch", source="arXiv:2205.10287", predict=sqrt_batch),
    PublishedRule(name="batch-0.3", source="arXiv:2507.07101", predict=batch_03, fitted_weights=(30e6, 1.3e9)),
    PublishedRule(
        name="decay-to-zero",
        source="arXiv:2502.15938",
        predict=decay_to_zero,
        fitted_weights=(111e6, 1.7e9),
        with_embeddings=True,
    ),
)
PUBLISHED: Mapping[RuleName, PublishedRule] = {rule.name: rule for rule in _PUBLISHED}
"""Every rule but "combined", which is several of them."""


def _beyond(value: float | None, fitted: tuple[float, float] | None) -> bool:
    return value is not None and fitted is not None and not fitted[0] <= value <= fitted[1]
