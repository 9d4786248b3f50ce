"""What a ladder has found: laws through the optima of its rungs, predictions, and the check of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpstudy.analysis.in_short import opponent
from hpstudy.analysis.numbers import interval_decimals, listed, with_sign
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rungs import (
    LEVEL,
    Estimate,
    Rung,
    ends_of,
    estimate_at,
    nearest,
    position,
    raw_keys,
    rounded,
    shown_key,
    value_at,
)
from hpstudy.coordinates import batch_of
from hpstudy.hparams import HParams, raw_key
from hpstudy.search.rule_trials import sizes as rule_sizes
from hpstudy.search.rules import PUBLISHED
from hpstudy.statistics.difference import difference
from hpstudy.statistics.race import BASELINE
from hpstudy.statistics.scaling import BEND_LEVEL, Law, law
from hpstudy.study import FloatRange, Study, Value, num_trials
from hpstudy.study.ladder import COPIED, PREDICTED, Ladder, Size, fitted_keys
from hpstudy.study.schema import COMBINED, RuleName

SEARCH, GPT3_SIDE = "search", "gpt3"  # sides of the check
OFF_COURSE = 2.0  # times the tokens of the rungs' course, from which a size is said to be off it
LEAST_RANGE = math.log(1.25)  # half width of the target's range of a log scale, at least
Answer = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """A side of the check against its own search."""

    side: str
    hparams: HParams
    loss: float | None  # mean over the seeds, nats; None if it has not ended on all of them
    regret: float | None  # nats above the search's winner
    low: float | None  # of the 95% interval
    high: float | None
    seeds: int

    def __str__(self) -> str:
        """`+0.012 [−0.003, +0.027]`."""
        if self.regret is None or self.low is None or self.high is None:
            return "not measured"
        digits = interval_decimals(self.low, self.high)
        ends = ", ".join(with_sign(end, digits) for end in (self.low, self.high))
        return f"{with_sign(self.regret, digits)} [{ends}]"


@dataclass(frozen=True, kw_only=True)
class LadderResults:
    """All that a ladder has found so far."""

    ladder: Ladder
    runs: Path
    rungs: tuple[Rung, ...]  # whose searches are finished, from small to large
    check: Rung | None  # None until its search is finished
    sides: Mapping[str, StudyResults]  # of the check, by the side's name

    @property
    def root(self) -> Path:
        """The ladder's own folder."""
        return self.runs / self.ladder.name

    @property
    def searched(self) -> tuple[Rung, ...]:
        """The rungs, and the check once its search is finished."""
        return self.rungs if self.check is None else (*self.rungs, self.check)

    @property
    def keys(self) -> tuple[str, ...]:
        """The searched keys that laws are fitted for."""
        return fitted_keys(self.rungs[0].study) if self.rungs else ()

    @cached_property
    def laws(self) -> dict[str, Law]:
        """The law of each key's best value, on the key's scale."""
        fitted = [rung for rung in self.rungs if rung.optimum is not None]
        if not fitted:
            return {}
        sizes_RM = np.array([self.ladder.coordinates(rung.size) for rung in fitted])
        found = {}
        for place, key in enumerate(self.keys):
            optima = [rung.optimum for rung in fitted if rung.optimum is not None]
            means_R = np.array([each.centre[place] for each in optima])
            errors_R = np.array([each.error[place] for each in optima])
            found[key] = law(sizes_RM, means_R, errors_R)
        return found

    @cached_property
    def boundary(self) -> Law | None:
        """The law of the log of the largest stable lr; None if fewer than two rungs bound it."""
        found = [(rung.size, at) for rung in self.rungs if (at := rung.stable_lr) is not None and at.bounded]
        if len(found) < 2:
            return None
        sizes_RM = np.array([self.ladder.coordinates(size) for size, _ in found])
        return law(sizes_RM, np.array([at.value for _, at in found]), np.array([at.error for _, at in found]))

    def interval(self, key: str, size: Size) -> tuple[float, float, float]:
        """The predicted best value of a key at a size and its 90% interval, on its scale, within the boundary."""
        value, low, high = self.interval_at(key, self.ladder.coordinates(size))
        most = self._most(key, size)
        return min(value, most), min(low, most), min(high, most)

    def _most(self, key: str, size: Size) -> float:
        """The boundary at a size on a key's scale: infinite but for lr and lr_over_rule."""
        if raw_key(key) != "lr" or (stable := self.largest_lr(size)) is None:
            return math.inf
        study = self.study_at(size)
        most = float(study.value(replace(study.baseline, lr=stable.value), key))
        return position(self.rungs[-1].study.space[key], most)

    def interval_at(self, key: str, sizes: Sequence[float]) -> tuple[float, float, float]:
        """The law's value and interval at the natural logs of sizes on the ladder's axes, on the key's scale.

        Within the searched range, outside of which no trial was; but a raw lr may leave it, as it falls with size.
        """
        least, most = ends_of(self.rungs[-1].study.space[key])
        value, low, high = self.laws[key].at(np.array(sizes), LEVEL)
        if key == "lr":
            return value, low, high
        return min(max(value, least), most), min(max(low, least), most), min(max(high, least), most)

    def point(self, size: Size) -> dict[str, Value]:
        """The predicted point at a size. Keys without a law, such as text, have the largest rung's best values."""
        largest = self.rungs[-1]
        values: dict[str, Value] = dict(largest.best)
        for key in self.laws:
            dimension = largest.study.space[key]
            value = rounded(dimension, value_at(dimension, self.interval(key, size)[0]))
            values[key] = value if key == "lr" and isinstance(dimension, FloatRange) else nearest(dimension, value)
        return values

    def study_at(self, size: Size) -> Study:
        """The study of a size."""
        return self.ladder.study(self.ladder.rung_text(size), self.ladder.part(size.label))

    def predicted(self, size: Size) -> HParams:
        """The predicted hyperparameters at a size."""
        return self.study_at(size).trial_hparams(self.point(size), size.tokens)

    def estimate(self, key: str, size: Size) -> Estimate:
        """The predicted best value of a key at a size, of lr_over_rule as lr."""
        return estimate_at(self.study_at(size), self.point(size), key, self.interval(key, size))

    def largest_lr(self, size: Size) -> Estimate | None:
        """The predicted largest stable lr at a size."""
        if self.boundary is None:
            return None
        value, low, high = map(math.exp, self.boundary.at(np.array(self.ladder.coordinates(size)), LEVEL))
        return Estimate(value=value, low=low, high=high)

    def range_at(self, key: str, size: Size) -> dict[str, float] | None:
        """The range of a key for a search at a size: its interval, within the boundary. None for listed values."""
        dimension = self.rungs[-1].study.space[key]
        if not isinstance(dimension, FloatRange):
            return None
        middle, low, high = self.interval(key, size)
        least = LEAST_RANGE if dimension.scale != "linear" else 0.05 * (dimension.high - dimension.low)
        high = min(max(high, middle + least), self._most(key, size))
        low = min(low, middle - least)
        values = sorted(value_at(dimension, end) for end in (low, high))
        if raw_key(key) != "lr":
            values = [min(max(value, dimension.low), dimension.high) for value in values]
        return {end: float(rounded(dimension, value)) for end, value in zip(("low", "high"), values, strict=True)}

    def side_values(self, check: Size) -> dict[str, dict[str, Value]]:
        """The raw values of each side of the check that searches nothing: predicted, copied, and published rules."""
        study, smallest = self.study_at(check), self.rungs[0]
        raw = raw_keys(list(study.space))
        found: dict[str, HParams] = {PREDICTED: self.predicted(check)}
        if smallest.results.tuned is not None:
            found[COPIED] = smallest.results.tuned.hparams
        values = {side: {key: _plain(getattr(hparams, key)) for key in raw} for side, hparams in found.items()}
        if self.ladder.table.batch is not None and COPIED in values:
            values[COPIED]["batch_tokens"] = found[COPIED].batch_tokens
        for rule in self.ladder.table.check_rules:
            values[rule] = rule_values(study, rule)
        return values

    def hparams_of(self, side: str) -> HParams:
        """The hyperparameters that a side of the check trains with."""
        assert self.check is not None
        if side == SEARCH and self.check.results.tuned is not None:
            return self.check.results.tuned.hparams
        return self.sides[side].study.baseline if side in self.sides else self.check.study.baseline

    @cached_property
    def regrets(self) -> tuple[Regret, ...]:
        """Each side of the check against its own search on the same fresh seeds; the search itself first."""
        if self.check is None:
            return ()
        return tuple(self.between(side) for side in (SEARCH, *self.sides, GPT3_SIDE))

    def between(self, side: str, other: str = SEARCH) -> Regret:
        """A side of the check against another one, by default its own search, on the seeds that both have."""
        ours, theirs = self._losses(side), self._losses(other)
        seeds = [seed for seed in ours if seed in theirs]
        hparams = self.hparams_of(side)
        if len(seeds) < 2:
            return Regret(side=side, hparams=hparams, loss=None, regret=None, low=None, high=None, seeds=len(seeds))
        pairs = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
        found = difference(*pairs, design="paired")
        low, high = found.interval()
        loss = float(np.mean(pairs[0]))
        ends = (float(found.mean), float(low), float(high))
        return Regret(
            side=side, hparams=hparams, loss=loss, regret=ends[0], low=ends[1], high=ends[2], seeds=len(seeds)
        )

    def _losses(self, side: str) -> dict[int, float]:
        """The losses of a side on fresh seeds, by seed."""
        assert self.check is not None
        results, name = self.check.results, BASELINE
        if side == SEARCH:
            names = [name for name in results.fresh.candidates if name != BASELINE]
            name = names[0] if names else ""
        elif side != GPT3_SIDE:
            results = self.sides[side]
        rows = results.fresh.full(name)
        return {
            int(seed): float(loss)
            for seed, loss in zip(rows["seed"], rows["loss"], strict=True)
            if not math.isnan(loss)
        }

    @property
    def answer(self) -> Answer | None:
        """Whether the prediction held at the check, by the margin that the file states; None before the check ends.

        It holds if the interval of its regret ends below the margin, and fails if it begins above.
        """
        found = {each.side: each for each in self.regrets}.get(PREDICTED)
        if found is None or found.low is None or found.high is None:
            return None
        margin = self.ladder.table.check_margin
        return "holds" if found.high <= margin else "fails" if found.low > margin else "undecided"

    def sentences(self) -> list[str]:
        """The answer, the check's other sides, then for each key its prediction and measured optimum at the check."""
        if self.check is None:
            return []
        others = [f"{self.side_name(r.side)}: {r}" for r in self.regrets if r.side not in (SEARCH, PREDICTED)]
        likewise = [f"Likewise {'; '.join(others)}."] if others and self.answer is not None else []
        if likewise and COPIED in self.sides and PREDICTED in self.sides:
            likewise.append(f"Predicted less copied: {self.between(PREDICTED, COPIED)}.")
        return [self.verdict, *likewise, *map(self._agreement, self.laws)]

    @property
    def verdict(self) -> str:
        """Whether the prediction held at the check, in one sentence."""
        size, by_side = self.ladder.check, {each.side: each for each in self.regrets}
        if size is None or PREDICTED not in by_side or by_side[PREDICTED].regret is None:
            return "The check has not ended."
        answers = {
            "holds": "Yes: the prediction holds",
            "fails": "No: the prediction fails",
            "undecided": "Undecided: the prediction",
        }
        assert self.check is not None
        assert self.answer is not None
        return (
            f"{answers[self.answer]} at {size.label}: its loss less that of a search of {num_trials(self.check.study)} "
            f"trials is {by_side[PREDICTED]} nats (margin {self.ladder.table.check_margin:g})."
        )

    def side_name(self, side: str) -> str:
        """What tables and sentences call a side of the check."""
        return {
            SEARCH: "its own search",
            PREDICTED: "predicted",
            COPIED: f"copied from {self.ladder.rungs[0].label}",
            GPT3_SIDE: opponent(self.rungs[0].study) if self.rungs else "GPT-3",
        }.get(side, side)

    def _agreement(self, key: str) -> str:
        assert self.check is not None
        assert self.ladder.check is not None
        name, ours, label = shown_key(key), self.estimate(key, self.ladder.check), self.ladder.check.label
        if ours.is_open:
            return f"{name}: the rungs leave it open, {ours} at {label}."
        measured, place = self.check.estimate(key), self.check.keys.index(key)
        if measured is None or self.check.optimum is None:
            return f"Predicted {name} {ours} at {label}; the check's trials are too few to measure an optimum."
        if not self.check.optimum.bent[place]:
            return f"Predicted {name} {ours} at {label}; the check's trials show no optimum inside the range."
        held = "holds" if ours.holds(measured.value) else "does not hold"
        return f"Predicted {name} {ours} at {label}, which {held} the measured optimum, {measured}."

    def not_transferred(self) -> Iterator[str]:
        """A sentence for each key whose law bends, whose slope is unclear, or whose optimum lies at a range's end."""
        for place, key in enumerate(self.keys):
            name = shown_key(key)
            bend = self.laws[key].bend if key in self.laws else None
            if bend is not None and bend < BEND_LEVEL / len(self.laws):  # for all keys together
                yield f"{name}: a line is not enough for these rungs (p = {bend:.2g})."
            ends = [r.size.label for r in self.rungs if r.optimum is not None and not r.optimum.bent[place]]
            if ends:
                yield f"{name}: the trials of {listed(ends)} show no optimum inside the range."

    def factors(self, size: Size) -> str:
        """How far a size is beyond the largest rung: `3.4x in weights and 1.5x in tokens`."""
        last = self.ladder.rungs[-1]
        return f"{size.weights / last.weights:.2g}x in weights and {size.tokens / last.tokens:.2g}x in tokens"

    def off_course(self, size: Size) -> str:
        """A sentence if a size has other tokens for its weights than the rungs, which a law in N alone cannot know."""
        if self.ladder.axes != ("N",) or len(self.ladder.rungs) < 2:
            return ""
        logs = np.log([(rung.weights, rung.tokens) for rung in self.ladder.rungs])
        slope, start = np.polyfit(logs[:, 0], logs[:, 1], 1)
        factor = size.tokens / math.exp(start + slope * math.log(size.weights))
        if 1 / OFF_COURSE < factor < OFF_COURSE:
            return ""
        return (
            f"{size.label} trains on {factor:.2g} times the tokens that the rungs' own course gives at its size; the "
            "laws know its weights alone."
        )


def rule_values(study: Study, rule: RuleName) -> dict[str, Value]:
    """What a published rule says of the keys that a study searches, as raw values beside its baseline's."""
    raw, values, size = raw_keys(list(study.space)), dict[str, Value](), study.size()
    for part in COMBINED if rule == "combined" else (rule,):
        hparams = study.trial_hparams(values, study.spec.tokens)
        predicted = PUBLISHED[part].predict(rule_sizes(study), hparams)
        values |= {key: _plain(value) for key, value in predicted.items() if key in raw}
        if "batch_tokens" in values:
            values["batch_tokens"] = batch_of(float(values["batch_tokens"]) / size.tokens, size)
    return values


def _plain(value: Any) -> Value:
    return value if isinstance(value, str | int) else float(f"{value:.6g}")


def gains(results: LadderResults) -> Iterator[tuple[Rung, Any]]:
    """Each rung, the check included, with its verdict's contrast of winner and baseline, if there is one."""
    for rung in results.searched:
        contrasts = rung.results.verdict().contrasts
        yield rung, contrasts[0] if contrasts else None
