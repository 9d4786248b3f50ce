"""A study file in TOML -> `Study`: the question, what varies, what is fixed, and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpstudy.hparams import HParams
from hpstudy.spec import TrainerSpec

Value = float | int | str
"""A hyperparameter's value as the study file states it."""

MetricName = Literal["val/loss", "train/tok_per_sec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRange:
    """A continuous dimension of the search: low < high; "log1m" is the log of 1 - value (for betas)."""

    low: float
    high: float
    scale: Literal["linear", "log", "log1m"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A dimension with a few values, at least two, all different."""

    values: tuple[Value, ...]


Dimension = FloatRange | Choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A metric the search improves; loss goes down, tokens per second go up."""

    metric: MetricName
    direction: Literal["minimize", "maximize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How Optuna proposes: name is tpe, gp, random, qmc or grid (every combination of choices, once)."""

    name: Literal["tpe", "gp", "random", "qmc", "grid"]
    startup: int  # random trials before tpe or gp start to learn
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruner:
    """Which trials are stopped early; divergence is always stopped, whatever the name."""

    name: Literal["none", "median", "successive_halving"]
    startup: int  # median: trials that are never pruned
    from_fraction: float  # of the evaluations; no trial is judged before
    reduction: int  # successive halving: one trial in `reduction` goes on from each rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much the search may spend, and how far proposals run ahead of results."""

    trials: int
    parallel: int
    pack: int
    sampler: Sampler
    pruner: Pruner


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Winner and baseline again on fresh seeds, which alone make a verdict."""

    seeds: tuple[int, ...]
    top: int
    margin: float  # nats; a smaller difference does not matter to the asker
    design: Literal["paired", "independent"]


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

    def trial_hparams(self, proposal: dict[str, Value], tokens: int | None) -> HParams:
        """GPT-3's values under [hparams] under a proposal; warm-up scaled to a run of `tokens` where nobody set it."""
        raise NotImplementedError

    def baseline_hparams(self, tokens: int | None) -> HParams:
        """GPT-3's values under [hparams] under [baseline] overrides, warm-up scaled to a run of `tokens`."""
        raise NotImplementedError

    def baseline_proposal(self) -> dict[str, Value] | None:
        """The baseline as a point of the space, or None when it lies outside (then it runs as phase `baseline` only)."""
        raise NotImplementedError

    def resolved(self) -> dict[str, Any]:
        """Every value that determines results as one flat {"section.key": JSON value}, defaults filled in."""
        raise NotImplementedError


def load_study(name_or_path: str, studies_dir: Path = Path("studies")) -> Study:
    """Reads and validates `studies/NAME.toml`, or a path to a .toml file.

    Raises UserError with every problem of the file at once.
    """
    raise NotImplementedError


def list_studies(studies_dir: Path = Path("studies")) -> list[tuple[str, str]]:
    """(name, question) of every study file in a folder, in order of name; a file that does not parse has its error."""
    raise NotImplementedError
