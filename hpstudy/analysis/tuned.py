"""The values that a study has found, beside its baseline's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hpstudy.analysis.numbers import plain, short
from hpstudy.hparams import COORDINATES, MEASURES, RULES, SEARCHABLE, HParams, derived, raw_key, unused
from hpstudy.study import Study, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One searched key: the baseline's value and the found one."""

    key: str
    baseline: Value
    tuned: Value
    ratio: float | None  # tuned over baseline; None for text and for a baseline of 0
    measure: str = ""  # half-life or timescale; of a coordinate the hyperparameter that it stands for
    unit: str = ""  # of the measure
    baseline_measure: float | None = None
    tuned_measure: float | None = None

    @property
    def effect(self) -> str:
        """What a change means beside the values; empty for text.

        `half-life 13.5k → 7.94k tokens` of a beta, `lr 0.0006 → 0.0031` of a coordinate, else the ratio: `×4.5`, `÷8`.
        """
        if self.key in COORDINATES and self.baseline_measure is not None and self.tuned_measure is not None:
            return f"{self.measure} {plain(self.baseline_measure)} → {plain(self.tuned_measure)}"
        if self.key in ("beta1", "beta2") and self.baseline_measure and self.tuned_measure:
            return f"{self.measure} {short(self.baseline_measure)} → {short(self.tuned_measure)} {self.unit}"
        if not self.ratio:
            return ""
        return f"×{self.ratio:.2g}" if self.ratio > 0.5 else f"÷{1 / self.ratio:.2g}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A row of a table: key, baseline, found value, effect."""
        return self.key, plain(self.baseline), plain(self.tuned), self.effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The best set of values of a study so far."""

    run_id: str  # of the trial
    confirmed: bool  # whether fresh seeds have compared it with the baseline
    hparams: HParams
    changes: tuple[Change, ...]  # of the searched keys that have an effect, in the order of the study file

    @property
    def values(self) -> dict[str, Value]:
        """The searched keys with an effect, and their values."""
        return {change.key: change.tuned for change in self.changes}

    def as_toml(self, study: Study) -> str:
        """The [hparams] of a study file that trains with these values: what the study fixes, then what was found.

        Coordinates are stated as the hyperparameters that they stand for.
        """
        found = {raw_key(key): getattr(self.hparams, raw_key(key)) for key in self.values}
        values = {**study.hparams, **found}
        return "\n".join(["[hparams]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"


def tuned(study: Study, run_id: str, row: Mapping[Any, Any], *, confirmed: bool) -> Tuned:
    """The values of a trial, given as a row of `trials`, beside the baseline's.

    The baseline's warm-up and the half-lives are those of a run of the study's budget.
    """
    ours, theirs = hparams_of(row), study.baseline
    return Tuned(run_id=run_id, confirmed=confirmed, hparams=ours, changes=tuple(_changes(study, ours, theirs)))


def hparams_of(row: Mapping[Any, Any]) -> HParams:
    """The hyperparameters in a row of `trials`."""
    values: dict[str, Any] = {key: rule.kind(row[key]) for key, rule in RULES.items()}
    return HParams(**values)


def _changes(study: Study, ours: HParams, theirs: HParams) -> Iterator[Change]:
    searched: list[dict[str, Any]] = [{key: study.value(side, key) for key in study.space} for side in (ours, theirs)]
    now, before = (asdict(s) | derived(s) | own for s, own in zip((ours, theirs), searched, strict=True))
    for key in study.space:
        if key in unused(ours):
            continue
        is_number = SEARCHABLE[key].kind is not str and 0 < abs(before[key]) < math.inf
        name, measure, unit = MEASURES.get(key, ("", "", ""))
        if key in COORDINATES:
            name = measure = raw_key(key)
        yield Change(
            key=key,
            baseline=before[key],
            tuned=now[key],
            ratio=now[key] / before[key] if is_number else None,
            measure=measure,
            unit=unit,
            baseline_measure=before.get(name),
            tuned_measure=now.get(name),
        )
