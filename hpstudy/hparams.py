"""What may vary between trials, the GPT-3 baseline, and the same values in other units."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

ClipMode = Literal["global", "per_tensor", "none"]
Scale = Literal["linear", "log", "log1m"]

GPT3_TOKENS = 300_000_000_000  # the run that GPT-3's schedule is stated for
MIN_WARMUP_STEPS = 10
SPELLED = re.compile(
    r"\s*(?P<number>-?[0-9][0-9_,]*(\.[0-9]*)?(e[+-]?[0-9]{1,3})?)\s*(?P<suffix>[kmbgt%]?)\s*", re.IGNORECASE
)
MAX_WRITTEN = 1e18  # of a number that a message advises; TOML ends at 2^63
SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "%": 0.01}
MIN_WARMUP_FRACTION = 0.01


def number_hint(value: object, *, whole: bool) -> str:
    """`; write 1_000_000` for a number that is spelled as text or as a float, such as "1M"; else an empty string."""
    if isinstance(value, str) and (match := SPELLED.fullmatch(value)):
        value = float(re.sub("[_,]", "", match["number"])) * SUFFIXES[match["suffix"].lower()]
    if not isinstance(value, float) or not abs(value) < MAX_WRITTEN or (whole and not value.is_integer()):
        return ""
    return f"; write {int(value):_}" if whole else f"; write {value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The legal values of one hyperparameter, its unit, and its meaning in one line."""

    kind: type[float | int | str]
    unit: str
    doc: str
    choices: tuple[str, ...] = ()  # of text
    low: float = 0.0
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    zero: str = ""  # what to write instead of a 0 that is not legal
    scale: Scale = "linear"  # on which a range is searched, if its file states none; log1m is the log of 1 - value

    def problem(self, value: object) -> str | None:
        """Why a value is not legal, or None if it is."""
        if self.kind is str:
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}, but got {value!r}"
        accepted = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted):
            rule = "a whole number" if self.kind is int else "a number"
            return f"must be {rule}, but got {value!r}{number_hint(value, whole=self.kind is int)}"
        return None if self.allows(value) else f"must be in {self}, but got {value!r}{self._hint(value)}"

    def _hint(self, value: float) -> str:
        if value == 0 and self.zero:
            return f"; {self.zero}"
        if not (value > self.high or (self.high_open and value == self.high)):
            return ""
        share = [f"it is a share {self.unit}"] if self.unit.startswith("of ") else []
        percent = [f"write {value / 100:g}"] if 2 <= value < 100 else []
        return f"; {'; '.join(share + percent or ['such as 0.9 or 0.95'])}"

    def allows(self, value: float) -> bool:
        """Whether a number is in the range. NaN and infinities never are."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return abs(value) <= sys.float_info.max and above and below

    def __str__(self) -> str:
        """The range in interval notation, such as `(0, 1]`."""
        low, high = ("(" if self.low_open else "["), (")" if self.high_open else "]")
        return f"{low}{self.low:g}, {'inf)' if math.isinf(self.high) else f'{self.high:g}{high}'}"


def _key(unit: str, doc: str, kind: type[float | int | str] = float, **limits: Any) -> dict[str, Rule]:
    return {"rule": Rule(kind=kind, unit=unit, doc=doc, **limits)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """Everything a trial may change. Each field's metadata holds its unit, range and meaning."""

    lr: float = field(metadata=_key("", "peak learning rate", low_open=True, scale="log"))
    beta1: float = field(
        metadata=_key("", "AdamW's decay of the gradient average", low_open=True, high=1, high_open=True, scale="log1m")
    )
    beta2: float = field(
        metadata=_key(
            "", "AdamW's decay of the squared-gradient average", low_open=True, high=1, high_open=True, scale="log1m"
        )
    )
    eps: float = field(
        metadata=_key("", "AdamW's epsilon, added to sqrt(v)", low=1e-37, scale="log")
    )  # fp32 makes less to 0
    weight_decay: float = field(
        metadata=_key("", "decoupled weight decay of tensors of two or more dimensions", scale="log")
    )
    grad_clip: float = field(
        metadata=_key(
            "",
            "gradient norm above which gradients are scaled down",
            low_open=True,
            zero='clip_mode = "none" does not clip',
            scale="log",
        )
    )
    clip_mode: ClipMode = field(
        metadata=_key(
            "", "clip by the global norm, each tensor by its own, or not at all", str, choices=get_args(ClipMode)
        )
    )
    warmup_fraction: float = field(metadata=_key("of the run's tokens", "linear warm-up to the peak", high=1))
    decay_fraction: float = field(
        metadata=_key("of the run's tokens", "point at which the cosine reaches its floor", low_open=True, high=1)
    )
    min_lr_fraction: float = field(metadata=_key("of lr", "floor of the cosine", high=1))
    batch_tokens: int = field(metadata=_key("tokens", "tokens in one step, over all its micro-batches", int, low=1))
    micro_batch: int = field(
        metadata=_key("sequences", "sequences in one forward pass; changes speed, not the loss", int, low=1)
    )
    batch_ramp_fraction: float = field(metadata=_key("of the run's tokens", "linear batch ramp; 0 is no ramp", high=1))
    batch_ramp_start: float = field(
        metadata=_key("of batch_tokens", "batch of the first step of a ramp", low_open=True, high=1)
    )


RULES: dict[str, Rule] = {f.name: f.metadata["rule"] for f in fields(HParams)}


def _coordinate(unit: str, doc: str, **limits: Any) -> Rule:
    return Rule(kind=float, unit=unit, doc=doc, low_open=True, scale="log", **limits)


COORDINATES: dict[str, Rule] = {
    "lr_over_rule": _coordinate(
        "of Step Law's lr",
        "peak learning rate over Step Law's, 1.79 N^-0.713 D^0.307 for N weights without embeddings and a run of D "
        "tokens (arXiv:2503.04715)",
    ),
    "beta1_halflife": _coordinate("of the run's tokens", "half-life of the gradient average"),
    "beta2_halflife": _coordinate("of the run's tokens", "half-life of the squared-gradient average"),
    "weight_decay_timescale": _coordinate(
        "of the run's tokens",
        "batch_tokens / (lr x weight_decay), after which weight decay at the peak lr has shrunk a weight to 1/e",
    ),
    "batch_fraction": _coordinate(
        "of the run's tokens",
        "one step's batch, rounded to context x ranks x a power of two, the nearest on a log scale",
        high=1,
    ),
}
"""What [search] may vary in place of a raw key, alike for models and runs of any size; see hpstudy.coordinates."""

RAW_KEY = {
    "lr_over_rule": "lr",
    "beta1_halflife": "beta1",
    "beta2_halflife": "beta2",
    "weight_decay_timescale": "weight_decay",
    "batch_fraction": "batch_tokens",
}
"""Coordinate -> the hyperparameter that it stands for."""

SEARCHABLE: dict[str, Rule] = {**RULES, **COORDINATES}
"""The keys that [search] knows."""


def raw_key(key: str) -> str:
    """The hyperparameter that a key of [search] stands for: itself, unless it is a coordinate."""
    return RAW_KEY.get(key, key)


# GPT-3 Small: Brown et al. 2020, arXiv:2005.14165, Table 2.1, section 2.3 and appendix B. The three fractions are
# 375M, 260B and 4B tokens of the paper's 300B; the ramp starts at 32k of 2^19 tokens. The paper states no
# micro-batch: 16 is a starting point that changes speed, not learning.
GPT3 = HParams(
    lr=6e-4,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    grad_clip=1.0,
    clip_mode="global",
    warmup_fraction=375_000_000 / GPT3_TOKENS,
    decay_fraction=260 / 300,
    min_lr_fraction=0.1,
    batch_tokens=2**19,
    micro_batch=16,
    batch_ramp_fraction=4 / 300,
    batch_ramp_start=1 / 16,
)


def unused(hparams: HParams) -> frozenset[str]:
    """The keys that have no effect beside the others: grad_clip without clipping, a ramp's start without a ramp."""
    idle = {"grad_clip": hparams.clip_mode == "none", "batch_ramp_start": hparams.batch_ramp_fraction == 0}
    return frozenset(key for key, is_idle in idle.items() if is_idle)


def scaled_warmup_fraction(tokens: int | None, batch_tokens: int) -> float:
    """GPT-3's warm-up as a fraction of a run of `tokens` tokens, at least 10 steps and 1% of the run.

    tokens is None while a budget in seconds is not measured yet; the rule of 10 steps then does not apply.
    """
    ten_steps = MIN_WARMUP_STEPS * batch_tokens / tokens if tokens else 0.0
    return min(max(GPT3.warmup_fraction, MIN_WARMUP_FRACTION, ten_steps), GPT3.decay_fraction)


def fitting_batch(tokens: float, unit: int) -> int:
    """A batch in tokens for a run of `tokens`: `unit` times a power of two, near 0.58 * tokens^0.571.

    Source: Li et al. 2025, arXiv:2503.04715.
    """
    return unit << max(round(math.log2(0.58 * max(tokens, 1) ** 0.571 / unit)), 0)


def halflife_tokens(beta: float, tokens_per_step: int) -> float:
    """Tokens after which a gradient's weight in the moving average has halved.

    beta in (0, 1). Source: Marek et al. 2025, arXiv:2507.07101.
    Raises ValueError if beta is outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be in (0, 1), but got {beta}")
    return tokens_per_step * math.log(0.5) / math.log(beta)


def decay_timescale_steps(lr: float, weight_decay: float) -> float:
    """Steps after which weight decay at the peak lr has shrunk a weight to 1/e: 1 / (lr * weight_decay).

    Infinite without decay. Source: Wang and Aitchison 2024, arXiv:2405.13698.
    """
    shrinkage = lr * weight_decay  # 0 also if the product is too small for a float
    return 1.0 / shrinkage if shrinkage else math.inf


def derived(hparams: HParams) -> dict[str, float]:
    """Values that compare across batch sizes: half-lives in tokens and the decay timescale in steps."""
    return {
        "beta1_halflife_tokens": halflife_tokens(hparams.beta1, hparams.batch_tokens),
        "beta2_halflife_tokens": halflife_tokens(hparams.beta2, hparams.batch_tokens),
        "decay_timescale_steps": decay_timescale_steps(hparams.lr, hparams.weight_decay),
    }


MEASURES = {
    "beta1": ("beta1_halflife_tokens", "half-life", "tokens"),
    "beta2": ("beta2_halflife_tokens", "half-life", "tokens"),
    "weight_decay": ("decay_timescale_steps", "timescale", "steps"),
}
"""Key -> its measure that compares across batches and learning rates: name in `derived`, short name, unit."""
