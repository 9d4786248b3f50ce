"""What a ladder has found: the optimum of every rung, laws through them, predictions, and the check of these.

Searched values are fitted on their own scales: logs of a log scale, logs of 1 - value for betas. A key that is searched
as a share of the run is fitted and shown as such; lr_over_rule is fitted as such, and shown as lr.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpstudy.analysis.foreseen import stopped_forecasts
from hpstudy.analysis.in_short import opponent
from hpstudy.analysis.numbers import interval_decimals, listed, rough, with_sign
from hpstudy.analysis.region import ended_trials
from hpstudy.analysis.results import StudyResults, load
from hpstudy.coordinates import batch_of
from hpstudy.data.corpus import corpus_of
from hpstudy.errors import HpstudyError, UserError
from hpstudy.files import command, json_object, read_json
from hpstudy.hparams import HParams, raw_key
from hpstudy.records import Outcome
from hpstudy.search.rule_trials import sizes as rule_sizes
from hpstudy.search.rules import PUBLISHED
from hpstudy.spec import flops_per_token
from hpstudy.statistics.difference import difference
from hpstudy.statistics.race import BASELINE
from hpstudy.statistics.scaling import BEND_LEVEL, Boundary, Law, Optimum, boundary, law, least_trials, optimum
from hpstudy.study import Choices, Dimension, FloatRange, Study, Value, num_trials
from hpstudy.study.frozen import SOURCE
from hpstudy.study.ladder import CHECK, COPIED, PREDICTED, TARGET, Ladder, Size, fitted_keys, load_ladder, parse_ladder
from hpstudy.study.schema import COMBINED, RuleName
from hpstudy.tracking.store import begun_studies

Array = NDArray[np.float64]

MAY_CHANGE = (TARGET, f"{TARGET}_tokens")  # keys of [ladder] after it has begun
FILE = "ladder.toml"  # in the ladder's folder: its file as it began
LEVEL = 0.9  # of the intervals of optima and predictions
SEARCH, GPT3_SIDE = "search", "gpt3"  # sides of the check
UNSTABLE = 0.5  # of what training gains at a rung: a trial that gains less is beyond the boundary
OVER_RULE = "lr_over_rule"  # a key whose values are shown as lr, which rules and the boundary are about
DIGITS = 4  # of a proposed value
OFF_COURSE = 2.0  # times the tokens of the rungs' course, from which a size is said to be off it
LEAST_RANGE = math.log(1.25)  # half width of the target's range of a log scale, at least
Answer = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 90% interval. An open end is one of the searched range: the interval may go on beyond it."""

    value: float
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    @property
    def is_open(self) -> bool:
        """Whether trials leave the value open: the interval spans the searched range."""
        return self.open_low and self.open_high

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """`0.0021 [0.0017, 0.0026]`, with two digits; `≥ 0.0026` for an open end."""
        low, high = ("≤ " if self.open_low else ""), ("≥ " if self.open_high else "")
        return f"{rough(self.value)} [{low}{rough(self.low)}, {high}{rough(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A part of the ladder with a search of its own: a rung, or the check."""

    size: Size
    results: StudyResults
    keys: tuple[str, ...]  # that laws are fitted for

    @property
    def study(self) -> Study:
        """The study of the rung."""
        return self.results.study

    @property
    def finished(self) -> bool:
        """Whether every trial of the search has ended."""
        searched = self.results.trials[self.results.trials["phase"] == "search"]
        return bool(searched["outcome"].notna().sum() >= num_trials(self.study))

    @cached_property
    def trials(self) -> tuple[list[dict[Any, Any]], Array]:
        """The search's trials as rows, and their final losses in nats.

        A stopped trial has the loss that foresight expects, and is left out without a forecast: its last loss is of a
        part of the run. A diverged one counts as a uniform guess.
        """
        rows, losses_N = ended_trials(self.study, self.results.trials)
        expected = {run: forecast.loss for run, forecast in stopped_forecasts(self.results).items()}
        worst, kept, losses = math.log(self.study.vocab_size), list[dict[Any, Any]](), list[float]()
        for row, loss in zip(rows, losses_N, strict=True):
            stopped = row["outcome"] == Outcome.PRUNED.value
            if not stopped or str(row["run_id"]) in expected:
                kept.append(row)
                losses.append(min(expected[str(row["run_id"])], worst) if stopped else float(loss))
        return kept, np.array(losses)

    @property
    def noise(self) -> float | None:
        """The standard deviation of a loss from seed to seed near the optimum, in nats; None if it is not known.

        The largest of three: the baseline's, the winner's on fresh seeds, and what the winner lost when it was trained
        again, as the best of many trials is the luckiest.
        """
        measured = [self.results.noise.sd] if self.results.noise else []
        if (found := self.results.tuned) is not None:
            losses = self.results.fresh.complete_losses(found.run_id)
            if len(losses) > 1:
                measured.append(float(losses.std(ddof=1)))
            if len(losses):
                measured.append(abs(float(losses.mean()) - self.results.one_seed_loss(found.run_id)))
        return max((each for each in measured if math.isfinite(each)), default=None)

    @cached_property
    def optimum(self) -> Optimum | None:
        """The best point by a surface through all trials; None if they are too few."""
        rows, losses_N = self.trials
        space = self.study.space
        if not rows:
            return None
        points_NK = np.array([[position(space[key], row[key]) for key in self.keys] for row in rows])
        ends = np.array([_ends(space[key]) for key in self.keys])
        return optimum(points_NK, losses_N, ends[:, 0], ends[:, 1], noise=self.noise)

    @cached_property
    def best(self) -> dict[str, Value]:
        """The searched values of the best trial, the confirmed one if there is one; empty without a complete trial."""
        found = self.results.tuned
        if found is None:
            return {}
        return {key: self.study.value(found.hparams, key) for key in self.study.space}

    def estimate(self, key: str) -> Estimate | None:
        """The best value of a key with its interval, of lr_over_rule as lr; None if the trials are too few."""
        found = self.optimum
        if found is None:
            return None
        place = self.keys.index(key)
        ends = np.quantile(found.draws[:, place], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        centre = found.centre[place]
        low, high = min(ends[0], centre), max(ends[1], centre)
        values = {k: value_at(self.study.space[k], float(c)) for k, c in zip(self.keys, found.centre, strict=True)}
        return _estimate(self.study, {**self.best, **values}, key, (float(centre), float(low), float(high)))

    @cached_property
    def stable_lr(self) -> Boundary | None:
        """The largest stable lr; None if lr is not searched, or no trial is stable."""
        rows, losses_N = self.trials
        if "lr" not in {raw_key(key) for key in self.study.space} or not rows:
            return None
        gain = math.log(self.study.vocab_size) - losses_N.min()
        diverged = np.array([row["outcome"] == Outcome.DIVERGED.value for row in rows])
        unstable_N = diverged | (losses_N > losses_N.min() + UNSTABLE * gain)
        lr_N = np.array([float(row["lr"]) for row in rows])
        return boundary(np.log(lr_N), unstable_N & (lr_N > lr_N[losses_N.argmin()]))

    @cached_property
    def epochs(self) -> float | None:
        """How often a run sees the corpus; None if the corpus is not there any more."""
        with suppress(HpstudyError):
            return self.size.tokens / corpus_of(self.study.spec).num_train_tokens
        return None

    @property
    def flops(self) -> float:
        """Of one run."""
        return run_flops(self.study)


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
        least, most = _ends(self.rungs[-1].study.space[key])
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
        return _estimate(self.study_at(size), self.point(size), key, self.interval(key, size))

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
        return tuple(self._regret(side) for side in (SEARCH, *self.sides, GPT3_SIDE))

    def between(self, side: str, other: str) -> Regret:
        """A side against another one, instead of against the search."""
        return self._regret(side, other)

    def _regret(self, side: str, other: str = SEARCH) -> Regret:
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


def run_flops(study: Study) -> float:
    """Multiplications and additions of one run of a study whose budget is in tokens."""
    spec = study.spec
    assert spec.tokens is not None
    return float(flops_per_token(spec.model, spec.tokenizer, spec.context)) * spec.tokens


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


def raw_keys(keys: Sequence[str]) -> list[str]:
    """The hyperparameters that searched keys stand for: lr of lr_over_rule."""
    return [raw_key(key) for key in keys]


def position(dimension: Dimension, value: Value) -> float:
    """A value on its dimension's scale: its log, the log of 1 - value, or itself on a linear scale."""
    number = float(value)
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return math.log(1 - number)
    linear = isinstance(dimension, FloatRange) and dimension.scale == "linear"
    return number if linear else math.log(number)


def value_at(dimension: Dimension, place: float) -> float:
    """The inverse of `position`."""
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return 1 - math.exp(place)
    linear = isinstance(dimension, FloatRange) and dimension.scale == "linear"
    return place if linear else math.exp(place)


def rounded(dimension: Dimension, value: float) -> float:
    """A value with DIGITS digits; of a beta its distance to 1 has them."""
    if isinstance(dimension, FloatRange) and dimension.scale == "log1m":
        return float(f"{1 - float(f'{1 - value:.{DIGITS}g}'):.12g}")
    return float(f"{value:.{DIGITS}g}")


def nearest(dimension: Dimension, value: float) -> Value:
    """The value of the dimension that is nearest on its scale."""
    if not isinstance(dimension, Choices):
        return dimension.nearest(value)
    return min(dimension.values, key=lambda choice: abs(position(dimension, choice) - position(dimension, value)))


def shown_key(key: str) -> str:
    """The name under which a searched key's best values are shown: lr for lr_over_rule, else the key."""
    return raw_key(key) if key == OVER_RULE else key


def _estimate(study: Study, point: Mapping[str, Value], key: str, ends: tuple[float, float, float]) -> Estimate:
    """A value and its interval, given on a key's scale, as they are shown; lr beside the other values of a point."""
    dimension, tokens = study.space[key], study.spec.tokens
    values = [value_at(dimension, end) for end in ends]
    if key == OVER_RULE:
        values = [study.trial_hparams({**point, key: value}, tokens).lr for value in values]
    least, most = _ends(dimension)
    opened = (ends[1] <= least, ends[2] >= most)
    if values[1] > values[2]:  # on the scale of 1 - value
        opened = (opened[1], opened[0])
    return Estimate(value=values[0], low=min(values), high=max(values), open_low=opened[0], open_high=opened[1])


def _ends(dimension: Dimension) -> tuple[float, float]:
    """The searched box on the dimension's scale, the lower end first."""
    values = (dimension.low, dimension.high) if isinstance(dimension, FloatRange) else dimension.values
    places = [position(dimension, value) for value in values]
    return min(places), max(places)


def _plain(value: Any) -> Value:
    return value if isinstance(value, str | int) else float(f"{value:.6g}")


def load_ladder_results(ladder: Ladder, runs: Path) -> LadderResults:
    """What a ladder has found so far in the folder `runs`."""
    begun = set(begun_studies(runs))

    def rung(size: Size, label: str) -> Rung | None:
        name = ladder.part(label)
        if name not in begun:
            return None
        results = load(name, runs)
        found = Rung(size=size, results=results, keys=fitted_keys(results.study))
        return found if found.finished else None

    rungs: list[Rung] = []
    for size in ladder.rungs:
        found = rung(size, size.label)
        if found is None:
            break
        rungs.append(found)
    check = rung(ladder.check, CHECK) if ladder.check is not None else None
    names = {side: ladder.part(f"{CHECK}-{side}") for side in (PREDICTED, COPIED, *ladder.table.check_rules)}
    sides = {side: load(name, runs) for side, name in names.items() if name in begun}
    return LadderResults(ladder=ladder, runs=runs, rungs=tuple(rungs), check=check, sides=sides)


def refuse_too_few(ladder: Ladder) -> None:
    """Raises UserError if a rung or the check has too few trials for an optimum."""
    problems = []
    parts = [(size, "trials") for size in ladder.rungs] + ([(ladder.check, "check_trials")] if ladder.check else [])
    for size, key in parts:
        study = ladder.study(ladder.rung_text(size), ladder.part(size.label))
        keys, trials = fitted_keys(study), num_trials(study)
        if trials < (least := least_trials(len(keys))):
            problems.append(
                f"{ladder.path}: [ladder] {key}: the optimum of {len(keys)} searched keys takes at least {least} "
                f"trials, but {size.label} has {trials}"
            )
    if problems:
        raise UserError(problems)


def begun_ladder(name: str, runs: Path) -> LadderResults:
    """The ladder that has begun under that name in the folder `runs`. Raises UserError if there is none."""
    path = runs / name / FILE
    if not path.exists():
        raise UserError(f"{runs / name}: no ladder has begun there; start it with `{command('run', name, runs)}`")
    began = parse_ladder(path.read_text(encoding="utf-8"), name=name, path=path)
    return load_ladder_results(with_target_of_today(began, path.parent), runs)


def with_target_of_today(began: Ladder, root: Path) -> Ladder:
    """The ladder as it began, with the target that its own file states now: it may change, as nothing trains on it."""
    with suppress(HpstudyError, KeyError, TypeError):
        kept = read_json(root / SOURCE, json_object) or {}
        now = load_ladder(str(Path(root.resolve(), str(kept["path"])).resolve()))
        changes = {key: getattr(now.table, key) for key in MAY_CHANGE}
        return replace(began, table=began.table.model_copy(update=changes), target=now.target)
    return began


def begun_ladders(runs: Path) -> list[str]:
    """The names of the ladders that have begun in a folder, sorted."""
    return sorted(path.parent.name for path in runs.glob(f"*/{FILE}"))


def parts(name: str, runs: Path) -> list[str]:
    """The studies that have begun of the ladder of that name in the folder `runs`; of a study its name alone."""
    if name not in begun_ladders(runs):
        return [name]
    path = runs / name / FILE
    ladder, begun = parse_ladder(path.read_text(encoding="utf-8"), name=name, path=path), set(begun_studies(runs))
    sides = (CHECK, *(f"{CHECK}-{side}" for side in (PREDICTED, COPIED, *ladder.table.check_rules)))
    named = [ladder.part(label) for label in (*(size.label for size in ladder.rungs), *sides)]
    return [each for each in named if each in begun]


def optima_table(results: LadderResults) -> pd.DataFrame:
    """A row for each rung and the check, and a prediction for each size beyond them, with intervals.

    Columns: study, part (rung, check, predicted check or predicted target), weights, tokens, key, value, low, high.
    """
    ladder, rows = results.ladder, list[dict[str, Any]]()

    def add(part: str, name: str, size: Size, estimates: Mapping[str, Estimate | None]) -> None:
        for key, found in estimates.items():
            ends = {"value": found.value, "low": found.low, "high": found.high} if found else {}
            rows.append(
                {"study": name, "part": part, "weights": size.weights, "tokens": size.tokens, "key": shown_key(key)}
                | ends
            )

    for rung in (*results.rungs, *filter(None, [results.check])):
        part = "check" if rung is results.check else "rung"
        add(part, rung.results.name, rung.size, {key: rung.estimate(key) for key in rung.keys})
    for part, size in ((CHECK, ladder.check), (TARGET, ladder.target)):
        if size is not None and results.laws:
            add(f"predicted {part}", ladder.part(part), size, {k: results.estimate(k, size) for k in results.laws})
    columns = ["study", "part", "weights", "tokens", "key", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def regrets_table(results: LadderResults) -> pd.DataFrame:
    """The sides of the check: side, loss, regret with its 95% interval (nats), seeds, and the searched raw values."""
    keys = raw_keys(results.keys)
    return pd.DataFrame(
        [
            {"side": r.side, "loss": r.loss, "regret": r.regret, "low": r.low, "high": r.high, "seeds": r.seeds}
            | {key: getattr(r.hparams, key) for key in keys}
            for r in results.regrets
        ],
        columns=["side", "loss", "regret", "low", "high", "seeds", *keys],
    )


def gains(results: LadderResults) -> Iterator[tuple[Rung, Any]]:
    """Each rung, the check included, with its verdict's contrast of winner and baseline, if there is one."""
    for rung in (*results.rungs, *filter(None, [results.check])):
        contrasts = rung.results.verdict().contrasts
        yield rung, contrasts[0] if contrasts else None
