"""What a study is: the question, what varies, what is fixed, and the budget."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpstudy.coordinates import RunSize, batch_of, coordinate, raw_values
from hpstudy.hparams import COORDINATES, GPT3, RULES, HParams, Scale, raw_key, scaled_warmup_fraction
from hpstudy.records import baseline_run_id
from hpstudy.spec import TrainerSpec
from hpstudy.study.schema import (
    FORMAT,
    FORMAT_OF_SEARCH,
    GOALS,
    Budget,
    Confirm,
    Direction,
    MetricName,
    Opponent,
    Yes,
    other_seed,
)

Value = float | int | str
"""A hyperparameter's value as the study file states it."""

AUTO = "auto"  # [hparams] micro_batch: measured on the device before anything is trained
GROWING = ("budget.trials", "confirm.seeds")  # the keys that may grow in a study that has begun
RANGE_TOLERANCE = 1e-9  # relative; a baseline at a range's end counts as inside


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRange:
    """A continuous dimension of the search, low < high. Scale "log1m" is the log of 1 - value, for betas."""

    low: float
    high: float
    scale: Scale

    def contains(self, value: Value) -> bool:
        """Whether a number is in the range, up to rounding at its ends."""
        if isinstance(value, str):
            return False
        return self.low <= value <= self.high or any(
            math.isclose(value, end, rel_tol=RANGE_TOLERANCE) for end in (self.low, self.high)
        )

    def nearest(self, value: Value) -> Value:
        """A contained value, moved to the range's end if rounding put it outside."""
        return value if isinstance(value, str) else min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A dimension with at least two values, all different."""

    values: tuple[Value, ...]

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the choices."""
        return value in self.values

    def nearest(self, value: Value) -> Value:
        """A contained value, unchanged."""
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedChoices(Choices):
    """Numbers, whose order the sampler uses. Before format 4 they are plain choices, as texts are."""


Dimension = FloatRange | Choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study file with every default filled in and every value checked."""

    name: str
    path: Path
    question: str
    baseline_name: str
    overrides: dict[str, Value]  # [baseline] overrides, over GPT-3 and [hparams]
    hparams: dict[str, Value]  # [hparams]: over GPT-3's values, for baseline and trials alike
    spec: TrainerSpec
    space: dict[str, Dimension]  # the keys that vary, and no others
    metrics: tuple[MetricName, ...]  # the objectives, one or two, in the file's order
    budget: Budget
    confirm: Confirm
    vocab_size: int  # without padding
    project: str  # on W&B
    entity: str | None
    warnings: tuple[str, ...]  # what is legal but probably not meant
    yes: tuple[Yes, ...] = ()  # the answers that mean yes; empty: the verdict says neither yes nor no
    also: tuple[Opponent, ...] = ()
    part_of: str | None = None  # the ladder whose rung or check it is
    format: int = FORMAT  # whose defaults the file has
    states_format: bool = True  # else the newest, or the one that the study began with
    derives_seeds: bool = False  # whether the file states no seeds, so that they follow from its name and values
    mixed: bool = False  # whether nodes of several kinds may train its runs
    micro_batch_limit: int = GPT3.micro_batch  # if no key states one; with AUTO, what was measured on the device

    @property
    def directions(self) -> list[Direction]:
        """Whether each objective is minimized or maximized."""
        return [GOALS[metric] for metric in self.metrics]

    @property
    def baseline(self) -> HParams:
        """The baseline at the run's budget in tokens; see `baseline_hparams` for a budget in seconds."""
        return self.baseline_hparams(self.spec.tokens)

    @property
    def trials(self) -> int:
        """Trials of the search, as the file states or implies."""
        assert self.budget.trials is not None, "load.py fills it in"
        return self.budget.trials

    @property
    def measures_speed(self) -> bool:
        """Whether the results depend on how fast a run trains."""
        return self.spec.seconds is not None or "train/tok_per_sec" in self.metrics

    @property
    def is_grid(self) -> bool:
        """Whether the search is a fixed list of points. An empty space counts, with its single point."""
        return self.budget.sampler.name == "grid" or not self.space

    @property
    def seeds(self) -> tuple[int, ...]:
        """The candidates' fresh seeds, as many as any of them may train."""
        assert self.confirm.seeds is not None, "load.py fills it in"
        return self.confirm.seeds

    @property
    def baseline_seeds(self) -> tuple[int, ...]:
        """The baseline's fresh seeds, in the order of `seeds`."""
        return self.seeds if self.confirm.design == "paired" else tuple(map(other_seed, self.seeds))

    @property
    def auto_micro_batch(self) -> bool:
        """Whether the micro-batch is to be measured on the device."""
        return self.hparams.get("micro_batch") == AUTO

    @property
    def largest_batch_tokens(self) -> int:
        """Tokens of the largest batch that any run may have."""
        searched, fixed = self.space.get("batch_tokens"), self.hparams.get("batch_tokens", GPT3.batch_tokens)
        batches = searched.values if isinstance(searched, Choices) else (fixed,)
        if (shares := self.space.get("batch_fraction")) is not None:
            most = max(map(float, shares.values)) if isinstance(shares, Choices) else shares.high
            batches = (batch_of(most, self.size()),)
        return max(self.baseline.batch_tokens, *(int(batch) for batch in batches))

    @property
    def baseline_run_id(self) -> str:
        """The run that the search is compared with: trial 0, or a run of its own if the space cannot hold it."""
        return "search-0000" if self.baseline_proposal() is not None else baseline_run_id(self.spec.seed)

    def size(self, tokens: int | None = None) -> RunSize:
        """The sizes that coordinates take, of a run of `tokens` tokens, or of the full budget."""
        budget = self.spec.tokens if tokens is None else tokens
        assert budget is not None, "checks.py refuses coordinates with a budget in seconds"
        return RunSize(
            weights=self.spec.model.num_weights, tokens=budget, batch_unit=self.spec.context * self.spec.ranks
        )

    def value(self, hparams: HParams, key: str, tokens: int | None = None) -> Value:
        """What a key of the space is worth for the hyperparameters of a run of `tokens` tokens, or the full budget.

        A coordinate that was converted from a choice or an end of its range is exactly that again, in spite of
        rounding.
        """
        if key not in COORDINATES:
            value: Value = getattr(hparams, key)
            return value
        size, dimension, raw = self.size(tokens), self.space.get(key), raw_key(key)
        found = coordinate(key, hparams, size)
        if isinstance(dimension, FloatRange):
            return dimension.nearest(found) if dimension.contains(found) else found
        for choice in dimension.values if dimension else ():
            gives_it = raw_values({**asdict(hparams), key: choice}, size)[raw] == getattr(hparams, raw)
            if gives_it or math.isclose(found, float(choice), rel_tol=RANGE_TOLERANCE):
                return choice
        return found

    def raw(self, proposal: Mapping[str, Value], tokens: int | None = None) -> dict[str, Value]:
        """A proposal's values by the hyperparameters that they stand for, of a run of `tokens` or the full budget."""
        if not COORDINATES.keys() & proposal.keys():
            return dict(proposal)
        values = raw_values({**asdict(GPT3), **self.hparams, **proposal}, self.size(tokens))
        return {raw_key(key): values[raw_key(key)] for key in proposal}

    def coordinates(self, hparams: HParams, tokens: int) -> dict[str, float]:
        """The searched coordinates of the hyperparameters of a run of `tokens` tokens."""
        return {key: float(self.value(hparams, key, tokens)) for key in self.space if key in COORDINATES}

    def trial_hparams(self, proposal: dict[str, Value], tokens: int | None) -> HParams:
        """GPT-3's values, overlaid with [hparams] and then a proposal, whose coordinates are shares of this run.

        Warm-up is scaled to a run of `tokens` tokens unless the file or the proposal states it.
        """
        return self._over_gpt3({**self.hparams, **self.raw(proposal, tokens)}, tokens)

    def baseline_hparams(self, tokens: int | None) -> HParams:
        """GPT-3's values, overlaid with [hparams] and then [baseline] overrides; warm-up as in `trial_hparams`."""
        return self._over_gpt3({**self.hparams, **self.overrides}, tokens)

    def baseline_proposal(self) -> dict[str, Value] | None:
        """The baseline as a point of the space, or None if it lies outside."""
        if self.baseline_outside():
            return None
        baseline = self.baseline
        return {key: dimension.nearest(getattr(baseline, key)) for key, dimension in self.space.items()}

    def baseline_outside(self) -> list[str]:
        """The keys whose baseline value no trial can have; of a space with coordinates these, as conversions round."""
        if converted := [key for key in self.space if key in COORDINATES]:
            return converted
        baseline = self.baseline
        trial = self.trial_hparams({key: getattr(baseline, key) for key in self.space}, self.spec.tokens)
        outside = [key for key, dimension in self.space.items() if not dimension.contains(getattr(baseline, key))]
        return outside + [key for key in RULES if getattr(trial, key) != getattr(baseline, key)]

    def resolved(self) -> dict[str, Any]:
        """Every value that determines results, as one flat {"section.key": JSON value}.

        A warm-up or micro-batch of None is derived from the run's size.
        """
        derived: dict[str, Value | None] = {**asdict(GPT3), "warmup_fraction": None, "micro_batch": None}
        fixed, searched = derived | self.hparams, {raw_key(key) for key in self.space}
        also = self.also[0] if len(self.also) == 1 else self.also or None  # as versions wrote it that knew one
        spec = {key: value for key, value in asdict(self.spec).items() if key != "ramp_multiple"}
        unknown = {key for key in ("warm_start", "first") if not getattr(self.budget, key)}  # to earlier versions
        sections: dict[str, Any] = {
            "baseline": {"name": self.baseline_name, "also": also, **fixed, **self.overrides},
            "trainer": spec,
            "hparams": {key: value for key, value in fixed.items() if key not in searched},
            "objective": {metric: GOALS[metric] for metric in self.metrics},
            "budget": self.budget.model_dump(exclude={"hang_seconds", *unknown}),
            "confirm": self.confirm.model_dump(),
        }
        search = {f"search.{key}": asdict(dimension) for key, dimension in self.space.items()}
        format_ = {"format": self.format} if self.format >= FORMAT_OF_SEARCH else {}  # it proposes in another way
        flat = {**format_, "question": self.question, "yes": self.yes, **_flat(sections), **search}
        plain: dict[str, Any] = json.loads(json.dumps(flat))  # tuples become lists
        return plain

    def _over_gpt3(self, given: dict[str, Value], tokens: int | None) -> HParams:
        values: dict[str, Any] = {**asdict(GPT3), **given}
        if given.get("micro_batch", AUTO) == AUTO:
            sequences = self.spec.rank_sequences(values["batch_tokens"])
            values["micro_batch"] = default_micro_batch(sequences, self.micro_batch_limit)
        if "warmup_fraction" not in given:
            scaled = scaled_warmup_fraction(tokens, values["batch_tokens"])
            values["warmup_fraction"] = min(scaled, values["decay_fraction"])
        return HParams(**values)


def num_trials(study: Study, asked: int | None = None) -> int:
    """Trials of the search: `asked`, or what the file says. A grid has no more than its points."""
    wanted = study.trials if asked is None else asked
    points = math.prod(len(values.values) for values in study.space.values() if isinstance(values, Choices))
    return min(wanted, points) if study.is_grid else wanted


def study_sha256(resolved: Mapping[str, Any]) -> str:
    """The hash of all that a study fixes when it begins: `Study.resolved()` without the growing keys."""
    fixed = {key: value for key, value in resolved.items() if key not in GROWING}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def default_micro_batch(sequences: int, limit: int = GPT3.micro_batch) -> int:
    """The largest divisor of a rank's sequences of a batch that is at most `limit`."""
    return max(size for size in range(1, limit + 1) if max(sequences, 1) % size == 0)


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: {"budget.sampler.name": "tpe"}."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
