"""What a study is: the question, what varies, what is fixed, and the budget."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpstudy.hparams import GPT3, RULES, HParams, scaled_warmup_fraction
from hpstudy.spec import TrainerSpec
from hpstudy.study.file import Design, Direction, MetricName, Opponent, PrunerName, SamplerName, Scale, Yes

Value = float | int | str
"""A hyperparameter's value as the study file states it."""

AUTO = "auto"  # [hparams] micro_batch: found on the device before anything is trained
SEEDS_APART = 1_000_000  # of candidate and baseline, where the design is independent
RANGE_TOLERANCE = 1e-9  # relative; a baseline on a range's end counts as inside


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRange:
    """A continuous dimension of the search: low < high; "log1m" is the log of 1 - value (for betas)."""

    low: float
    high: float
    scale: Scale

    def contains(self, value: Value) -> bool:
        """Whether a number lies in the range, up to rounding at its ends."""
        if isinstance(value, str):
            return False
        return self.low <= value <= self.high or any(
            math.isclose(value, end, rel_tol=RANGE_TOLERANCE) for end in (self.low, self.high)
        )

    def nearest(self, value: Value) -> Value:
        """A contained value, put right where rounding left it outside."""
        return value if isinstance(value, str) else min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A dimension with a few values, at least two, all different."""

    values: tuple[Value, ...]

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the choices."""
        return value in self.values

    def nearest(self, value: Value) -> Value:
        """A contained value as it is."""
        return value


Dimension = FloatRange | Choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A metric the search improves; loss goes down, tokens per second go up."""

    metric: MetricName
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How Optuna proposes: name is tpe, gp, random, qmc or grid (every combination of choices, once)."""

    name: SamplerName
    startup: int  # random trials before tpe or gp start to learn
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruner:
    """Which trials are stopped early; divergence is always stopped, whatever the name."""

    name: PrunerName
    startup: int  # median: trials that are never pruned
    from_fraction: float  # of the evaluations; no trial is judged before
    reduction: int  # successive halving: one trial in `reduction` goes on from each rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much the search may spend, and how far proposals run ahead of results."""

    trials: int
    parallel: int
    pack: int | Literal["auto"]  # trials trained as one stacked model; auto: as many as measure fastest
    sampler: Sampler
    pruner: Pruner
    smaller_micro_batch: bool = True  # after out of memory, where it is not searched; the loss stays the same
    hang_seconds: float | None = None  # of silence before a worker is ended as hung; None: from the steps' own pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Winner and baseline again on fresh seeds, which alone make a verdict."""

    seeds: tuple[int, ...]
    top: int
    margin: float  # nats; a smaller difference does not matter to the asker
    design: Design
    speedup: bool = False  # the winner at a half and three quarters of the budget too, with their own full schedules

    @property
    def baseline_seeds(self) -> tuple[int, ...]:
        """The baseline's fresh seeds: the same where runs are paired, else as many others."""
        return self.seeds if self.design == "paired" else tuple(map(other_seed, self.seeds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A resolved study file: every default filled in, every value checked."""

    name: str
    path: Path
    question: str
    baseline_name: str
    overrides: dict[str, Value]  # [baseline] overrides, over GPT-3 and [hparams]
    hparams: dict[str, Value]  # [hparams]: over GPT-3's values, for baseline and trials alike
    spec: TrainerSpec
    space: dict[str, Dimension]  # exactly these vary
    objectives: tuple[Objective, ...]  # one or two
    budget: Budget
    confirm: Confirm
    vocab_size: int  # unpadded
    project: str  # W&B
    entity: str | None
    warnings: tuple[str, ...]  # what is legal but probably not meant
    yes: tuple[Yes, ...] = ()  # the answers of the verdict that answer the question with yes; none: no yes or no
    also: Opponent | None = None  # [baseline] also: GPT-3's values with only lr tuned
    micro_batch_limit: int = GPT3.micro_batch  # where no key states one; under AUTO, what was found on the device

    @property
    def auto_micro_batch(self) -> bool:
        """Whether the micro-batch is to be found on the device."""
        return self.hparams.get("micro_batch") == AUTO

    @property
    def largest_batch_tokens(self) -> int:
        """Tokens of the largest batch that any run may have."""
        searched, fixed = self.space.get("batch_tokens"), self.hparams.get("batch_tokens", GPT3.batch_tokens)
        batches = searched.values if isinstance(searched, Choices) else (fixed,)
        return max(self.baseline_hparams(self.spec.tokens).batch_tokens, *(int(batch) for batch in batches))

    def trial_hparams(self, proposal: dict[str, Value], tokens: int | None) -> HParams:
        """GPT-3's values under [hparams] under a proposal; warm-up scaled to a run of `tokens` where nobody set it."""
        return self._over_gpt3({**self.hparams, **proposal}, tokens)

    def baseline_hparams(self, tokens: int | None) -> HParams:
        """GPT-3's values under [hparams] under [baseline] overrides, warm-up scaled to a run of `tokens`."""
        return self._over_gpt3({**self.hparams, **self.overrides}, tokens)

    def baseline_proposal(self) -> dict[str, Value] | None:
        """The baseline as a point of the space, or None when it lies outside (then it is of phase `baseline` only)."""
        baseline = self.baseline_hparams(self.spec.tokens)
        if self.baseline_outside():
            return None
        return {key: dimension.nearest(getattr(baseline, key)) for key, dimension in self.space.items()}

    def baseline_outside(self) -> list[str]:
        """The keys whose baseline value no trial can have, searched or fixed at another value."""
        baseline = self.baseline_hparams(self.spec.tokens)
        trial = self.trial_hparams({key: getattr(baseline, key) for key in self.space}, self.spec.tokens)
        outside = [key for key, dimension in self.space.items() if not dimension.contains(getattr(baseline, key))]
        return outside + [key for key in RULES if getattr(trial, key) != getattr(baseline, key)]

    def resolved(self) -> dict[str, Any]:
        """Every value that determines results as one flat {"section.key": JSON value}, defaults filled in.

        A warm-up or micro-batch of None is derived from the run's size. Only "budget.trials" and "confirm.seeds"
        may grow in a study that has begun.
        """
        derived: dict[str, Value | None] = {**asdict(GPT3), "warmup_fraction": None, "micro_batch": None}
        fixed = derived | self.hparams
        spec = {key: value for key, value in asdict(self.spec).items() if key != "ramp_multiple"}
        sections: dict[str, Any] = {
            "baseline": {"name": self.baseline_name, "also": self.also, **fixed, **self.overrides},
            "trainer": spec,
            "hparams": {key: value for key, value in fixed.items() if key not in self.space},
            "objective": {objective.metric: objective.direction for objective in self.objectives},
            "budget": {key: value for key, value in asdict(self.budget).items() if key != "hang_seconds"},
            "confirm": asdict(self.confirm),
        }
        search = {f"search.{key}": asdict(dimension) for key, dimension in self.space.items()}
        flat = {"question": self.question, "yes": self.yes, **_flat(sections), **search}
        plain: dict[str, Any] = json.loads(json.dumps(flat))  # tuples become lists
        return plain

    def _over_gpt3(self, given: dict[str, Value], tokens: int | None) -> HParams:
        values: dict[str, Any] = {**asdict(GPT3), **given}
        if given.get("micro_batch", AUTO) == AUTO:
            values["micro_batch"] = default_micro_batch(
                values["batch_tokens"], self.spec.context, self.micro_batch_limit
            )
        if "warmup_fraction" not in given:
            scaled = scaled_warmup_fraction(tokens, values["batch_tokens"])
            values["warmup_fraction"] = min(scaled, values["decay_fraction"])
        return HParams(**values)


def other_seed(seed: int) -> int:
    """The baseline's seed where a candidate has `seed` and the design is independent; it stays when seeds are added."""
    return (seed + SEEDS_APART) % 2**32


def default_micro_batch(batch_tokens: int, context: int, limit: int = GPT3.micro_batch) -> int:
    """The largest divisor of the batch's sequences that is no larger than `limit`."""
    sequences = max(batch_tokens // context, 1)
    return max(size for size in range(1, limit + 1) if sequences % size == 0)


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, {"budget.sampler.name": "tpe"}."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
