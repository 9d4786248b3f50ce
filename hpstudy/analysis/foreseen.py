"""How well a study's forecasts came true, what stopping by them saved, and what is forecast of unfinished trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.tuned import hparams_of
from hpstudy.records import Outcome, bounded_loss, trial_run_id
from hpstudy.search.foresight import Curve, Decision, Forecast, Foresight, foresight, is_audited

SHARES = (0.15, 0.3, 0.5, 0.7)  # of a run; errors are stated at the nearest evaluations
MOST_TESTED = 100  # trials, the last ones
EXPONENTS = np.arange(0.1, 2.05, 0.1)  # of the schedule-blind power law


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsAt:
    """How far forecasts of finished trials missed, each from the trials that it could know."""

    share: float  # of the run
    num_trials: int
    forecast: float  # median absolute error, nats
    current: float  # of the loss at that point
    blind: float  # of a power law in tokens through the losses so far, which does not know the schedule
    held: int  # trials whose final loss the 90% interval held


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A trial that would have been stopped, but was trained to its end."""

    run_id: str
    share: float  # of the run, at which it would have been stopped
    forecast: Forecast
    loss: float  # that it reached
    is_best: bool  # whether it is the best trial of the search

    @property
    def held(self) -> bool:
        """Whether the interval held the final loss."""
        return self.forecast.low <= self.loss <= self.forecast.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What stopping saved in a search."""

    stopped: int  # trials
    ended: int  # all trials that ended
    tokens: int  # that the stopped trials did not train on
    planned: int  # tokens of all trials that ended, had none been stopped

    @property
    def share(self) -> float:
        """Of the planned tokens."""
        return self.tokens / self.planned if self.planned else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What foresight did in a study."""

    errors: tuple[ErrorsAt, ...]
    audited: tuple[Audited, ...]
    savings: Savings


def foreseen(results: StudyResults) -> Foreseen | None:
    """What foresight did in a study; None if the study does not use it."""
    found, saved = foresight(results.study), savings(results)
    if found is None or saved is None:
        return None
    trials = _trials(results)
    curves = _curves(results, trials)
    finished = _finished(trials, curves)
    return Foreseen(
        errors=tuple(_errors(results, found, finished)),
        audited=tuple(_audited(results, found, finished)),
        savings=saved,
    )


def savings(results: StudyResults) -> Savings | None:
    """What foresight saved in a study; None if the study does not use it."""
    if results.study.budget.pruner.name != "foresight":
        return None
    trials = _trials(results)
    ended = trials[trials["outcome"].notna()]
    stopped = ended[ended["outcome"] == Outcome.PRUNED.value]
    return Savings(
        stopped=len(stopped),
        ended=len(ended),
        tokens=int((stopped["budget_tokens"] - stopped["tokens"]).sum()),
        planned=int(ended["budget_tokens"].sum()),
    )


def running_forecasts(results: StudyResults) -> dict[str, Forecast]:
    """Run id -> the forecast of its final loss, of the unfinished trials that have one. Empty without foresight."""
    trials = _trials(results)
    return _forecasts(results, trials[trials["outcome"].isna()], hindsight=False)


def stopped_forecasts(results: StudyResults) -> dict[str, Forecast]:
    """Run id -> the forecast of its final loss from all trials that ended, of the stopped trials that have one."""
    trials = _trials(results)
    return _forecasts(results, trials[trials["outcome"] == Outcome.PRUNED.value], hindsight=True)


def _forecasts(results: StudyResults, wanted: pd.DataFrame, *, hindsight: bool) -> dict[str, Forecast]:
    """Forecasts of some trials: from those that each may know, or with hindsight from all. Empty without foresight."""
    found, trials = foresight(results.study), _trials(results)
    if found is None or not len(wanted):
        return {}
    curves = _curves(results, trials)
    finished = _finished(trials, curves)
    forecasts: dict[str, Forecast] = {}
    for number in wanted["trial"].astype("int64"):
        if (curve := curves.get(int(number))) is None:
            continue
        known = finished if hindsight else _known(results, finished, curve.number)
        forecast = found.forecast(known, curve, max(curve.losses))
        if forecast is not None:
            forecasts[trial_run_id("search", curve.number)] = forecast
    return forecasts


def _trials(results: StudyResults) -> pd.DataFrame:
    return results.trials[results.trials["phase"] == "search"].sort_values("trial")


def _finished(trials: pd.DataFrame, curves: Mapping[int, Curve]) -> list[Curve]:
    """The curves of the trials that ended, in order of number."""
    ended = trials.loc[trials["outcome"].notna(), "trial"].astype("int64")
    return [curves[number] for number in ended if number in curves]


def schedule_blind(losses: Mapping[int, float], evals: int) -> float:
    """The loss at evaluation `evals` by a power law a + b * index^-c through the losses so far, by least squares."""
    indices, heights = np.array(sorted(losses)), np.array([losses[index] for index in sorted(losses)])
    best: tuple[float, float] | None = None
    for exponent in EXPONENTS:
        terms = np.stack([np.ones(len(indices)), indices**-exponent], axis=1)
        solved = np.linalg.lstsq(terms, heights)[0]
        miss = float(((terms @ solved - heights) ** 2).sum())
        if best is None or miss < best[0]:
            best = miss, float(solved[0] + solved[1] * evals**-exponent)
    assert best is not None
    return best[1]


def _curves(results: StudyResults, trials: pd.DataFrame) -> dict[int, Curve]:
    """Trial number -> what foresight sees of it, of the trials with an evaluation."""
    steps, vocab_size = results.steps, results.study.vocab_size
    evaluated = steps[(steps["phase"] == "search") & steps["val/loss"].notna()]
    losses: dict[int, dict[int, float]] = {}
    for number, index, loss in evaluated[["trial", "val/index", "val/loss"]].itertuples(index=False):
        losses.setdefault(int(number), {})[int(index)] = bounded_loss(float(loss), vocab_size)
    rows = {int(row["trial"]): row for row in trials.to_dict("records")}
    return {
        number: Curve(number=number, hparams=hparams_of(rows[number]), losses=found)
        for number, found in losses.items()
        if number in rows
    }


def _known(results: StudyResults, finished: Sequence[Curve], number: int) -> list[Curve]:
    """The finished trials that trial `number` may know."""
    most = results.study.budget.num_known(number)
    return [curve for curve in finished if curve.number < most]


def _errors(results: StudyResults, found: Foresight, finished: Sequence[Curve]) -> Iterator[ErrorsAt]:
    evals = results.study.spec.evals
    whole = [curve for curve in finished if evals in curve.losses][-MOST_TESTED:]
    for at in dict.fromkeys(max(1, round(share * evals)) for share in SHARES):
        if at == evals:
            continue
        rows = []
        for curve in whole:
            forecast = found.forecast(_known(results, finished, curve.number), curve.until(at), at)
            if forecast is None or at not in curve.losses:
                continue
            final, blind = curve.losses[evals], schedule_blind(curve.until(at).losses, evals)
            misses = (abs(guess - final) for guess in (forecast.loss, curve.losses[at], blind))
            rows.append((*misses, forecast.low <= final <= forecast.high))
        if rows:
            table = np.array(rows, dtype="float64")
            forecast_error, current, blind_error = map(float, np.median(table[:, :3], axis=0))
            yield ErrorsAt(
                share=at / evals,
                num_trials=len(rows),
                forecast=forecast_error,
                current=current,
                blind=blind_error,
                held=int(table[:, 3].sum()),
            )


def _audited(results: StudyResults, found: Foresight, finished: Sequence[Curve]) -> Iterator[Audited]:
    evals = results.study.spec.evals
    whole = [curve for curve in finished if evals in curve.losses]
    best = min((curve.losses[evals] for curve in whole), default=0.0)
    for curve in filter(lambda curve: is_audited(curve.number), whole):
        known = _known(results, finished, curve.number)
        for at in sorted(curve.losses):
            so_far = curve.until(at)
            forecast = found.forecast(known, so_far, at)
            if forecast is not None and found.decision(known, so_far, at, forecast) is Decision.AUDIT:
                yield Audited(
                    run_id=trial_run_id("search", curve.number),
                    share=at / evals,
                    forecast=forecast,
                    loss=curve.losses[evals],
                    is_best=curve.losses[evals] == best,
                )
                break
