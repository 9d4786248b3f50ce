"""What foresight forecasts, and when it stops a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy import stats

from hpstudy.hparams import GPT3
from hpstudy.records import Outcome
from hpstudy.schedule import plan
from hpstudy.search import Search
from hpstudy.search.foresight import Curve, Decision, Forecast, Foresight, regressed, schedule_sums
from hpstudy.study import Pruner, Study
from tests.helpers.search import drive, result, toy_result, toy_study

EVALS, TOKENS = 20, 1_000_000
GOOD, BAD = 9e-3, 3.5e-4  # learning rates
PLAIN = replace(GPT3, batch_ramp_fraction=0.0, warmup_fraction=0.05, batch_tokens=4096)
FORESIGHT = Pruner(name="foresight")


def made_up(number: int, lr: float) -> Curve:
    """A trial whose loss follows the law of Tissue et al., with a little noise: the higher the lr, the better."""
    hparams = replace(PLAIN, lr=lr)
    rates, decays = schedule_sums(hparams, TOKENS, EVALS)
    noise = 0.002 * np.random.default_rng(number).normal(size=EVALS + 1)
    losses = 3.0 + 0.4 * np.maximum(rates, 1e-3) ** -0.5 - 2.0 * decays + noise
    return Curve(number=number, hparams=hparams, losses={at: float(losses[at]) for at in range(1, EVALS + 1)})


def study_of(count: int) -> list[Curve]:
    chance = np.random.default_rng(1)
    return [made_up(number, 3e-4 * 30 ** chance.random()) for number in range(count)]


def foresight(*, top: int = 1, margin: float = 0.0) -> Foresight:
    return Foresight(evals=EVALS, tokens=TOKENS, top=top, margin=margin)


def decided(judge: Foresight, finished: Sequence[Curve], trial: Curve, at: int) -> Decision:
    return judge.decision(finished, trial, at, judge.forecast(finished, trial, at))


# The schedule


def test_the_first_sum_is_that_of_the_learning_rates_of_all_steps():
    hparams = replace(PLAIN, lr=3e-3)
    rates, _ = schedule_sums(hparams, TOKENS, EVALS)
    steps = list(plan(hparams, budget=TOKENS, unit=128, evals=EVALS))
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(sum(step.lr for step in steps), rel=0.01)
    half = sum(step.lr for step in steps if step.tokens <= TOKENS / 2)
    assert rates[EVALS // 2] == pytest.approx(half, rel=0.02)


def test_the_second_sum_is_that_of_the_falls_with_their_memory():
    hparams = replace(PLAIN, lr=3e-3)
    _, decays = schedule_sums(hparams, TOKENS, EVALS)
    rates = [step.lr for step in plan(hparams, budget=TOKENS, unit=128, evals=EVALS)]
    lately = total = 0.0
    for before, now in pairwise(rates):
        lately = 0.999 * lately + max(before - now, 0.0)
        total += lately
    assert decays[-1] == pytest.approx(total, rel=0.02)
    assert decays[1] == 0  # the warm-up has no fall


# The forecast


def test_a_linear_relation_is_found_and_its_interval_is_narrow():
    chance = np.random.default_rng(0)
    known = chance.normal(size=(30, 3))
    targets = known @ [1.0, -2.0, 0.5] + 0.01 * chance.normal(size=30)
    mean, spread, reach = regressed(known, targets, np.array([0.5, 0.5, 0.5]))
    assert mean == pytest.approx(-0.25, abs=0.03)
    assert spread < 0.05
    assert 1.5 * spread < reach < 3 * spread


def test_a_chance_is_that_of_students_distribution():
    forecast = Forecast(log_loss=math.log(3.0), spread=0.1, reach=0.2)
    for limit in (1.5, 2.4, 2.9, 3.0, 3.3):
        expected = stats.t.cdf((math.log(limit) - math.log(3.0)) / 0.1, df=5)
        assert forecast.chance_below(limit) == pytest.approx(expected, rel=1e-9)


def test_the_end_is_forecast_far_better_than_by_the_current_loss():
    curves = study_of(40)
    misses, currents, held = [], [], 0
    for curve in curves[10:]:
        found = foresight().forecast(curves[: curve.number], curve.until(6), 6)
        misses.append(abs(found.loss - curve.losses[EVALS]))
        currents.append(abs(curve.losses[6] - curve.losses[EVALS]))
        held += found.low <= curve.losses[EVALS] <= found.high
    assert np.median(misses) < 0.02 < 0.2 < np.median(currents)
    assert held >= 24  # of 30; an interval of 90% holds fewer in 1 of 40 studies


def test_a_forecast_uses_no_loss_after_its_evaluation():
    curves = study_of(12)
    early = foresight().forecast(curves[:11], curves[11].until(6), 6)
    later = replace(curves[11], losses=curves[11].losses | dict.fromkeys(range(7, 21), 9.0))
    assert foresight().forecast(curves[:11], later.until(6), 6) == early


def test_a_skipped_evaluation_lies_between_its_neighbours():
    curves = study_of(12)
    gaps = [
        replace(curve, losses={at: loss for at, loss in curve.losses.items() if at % 2 == 0 or at == 1})
        for curve in curves
    ]
    whole, gappy = (foresight().forecast(each[:11], each[11].until(6), 6) for each in (curves, gaps))
    assert gappy.loss == pytest.approx(whole.loss, abs=0.02)


def test_nothing_is_forecast_from_fewer_than_five_whole_trials():
    curves = study_of(6)
    stopped = [curve.until(10) for curve in curves]
    assert foresight().forecast([*curves[:4], *stopped], curves[5], 6) is None
    assert foresight().forecast(curves[:5], curves[5], 6) is not None


# The decision


def decisions(finished: Sequence[Curve], trial: Curve, **more: float) -> list[Decision]:
    judge = foresight(**more)
    return [decided(judge, finished, trial.until(at), at) for at in range(1, EVALS + 1)]


def test_a_hopeless_trial_is_stopped_at_15_percent_and_never_earlier_or_at_its_end():
    found = decisions(study_of(20), made_up(20, BAD))
    assert found[:2] == [Decision.GO_ON] * 2
    assert found[2] is Decision.STOP
    assert found[-1] is Decision.GO_ON


def test_one_trial_in_ten_is_not_stopped_but_audited():
    finished = study_of(20)
    judge = foresight()
    found = {n: decided(judge, finished, made_up(n, BAD).until(3), 3) for n in range(20, 40)}
    assert [n for n, decision in found.items() if decision is Decision.AUDIT] == [29, 39]
    assert sum(decision is Decision.STOP for decision in found.values()) == 18


def test_the_best_trial_is_not_stopped():
    assert set(decisions(study_of(20), made_up(20, GOOD))) == {Decision.GO_ON}


def test_nothing_is_stopped_before_eight_trials_have_ended():
    hopeless = made_up(20, BAD)
    assert decisions(study_of(7), hopeless)[2] is Decision.WATCH
    assert decisions(study_of(8), hopeless)[2] in (Decision.STOP, Decision.WATCH)


def test_intervals_that_missed_stop_nothing():
    finished = study_of(12)
    ends = [3.0 + 0.5 * (curve.number % 2) * (curve.number > 7) for curve in finished]  # no relation to the curves
    wild = [
        replace(curve, losses=curve.losses | {EVALS: end if curve.number > 7 else curve.losses[EVALS]})
        for curve, end in zip(finished, ends, strict=True)
    ]
    hits, forecasts = foresight().coverage(wild, 6)
    assert forecasts == 7
    assert hits < 0.8 * forecasts
    assert Decision.STOP not in decisions(wild, made_up(20, BAD))[5:6]


def test_what_ends_within_the_margin_or_among_the_top_goes_on():
    finished, trial = study_of(20), made_up(20, 1e-3)
    assert Decision.STOP in decisions(finished, trial)
    assert set(decisions(finished, trial, margin=4.0)) == {Decision.GO_ON}
    assert set(decisions(finished, trial, top=20)) == {Decision.GO_ON}


# In the search


def stops(study: Study, journal: Path, *, reopen: bool) -> list[int | None]:
    """The evaluation at which each trial of a search was stopped. With `reopen`, a new Search makes each decision."""
    search, found = Search(study, journal), []
    while (proposal := search.ask()) is not None:
        number, stopped = proposal.number, None
        losses = made_up(number, float(proposal.values["lr"])).losses
        for at, loss in losses.items():
            search.report(number, at, loss)
            search = Search(study, journal) if reopen else search
            if search.should_stop(number, at):
                stopped = at
                break
        search.tell(number, result(Outcome.PRUNED if stopped else Outcome.COMPLETE, losses[stopped or EVALS]))
        found.append(stopped)
    return found


def test_a_search_stops_hopeless_trials_and_decides_the_same_after_each_kill(tmp_path: Path):
    study = toy_study("random", trials=16, evals=EVALS, pruner=FORESIGHT)
    once = stops(study, tmp_path / "once", reopen=False)
    assert once[:8] == [None] * 8
    assert sum(at is not None for at in once) >= 3
    assert stops(study, tmp_path / "again", reopen=True) == once


def test_decisions_do_not_depend_on_the_order_in_which_trials_end(tmp_path: Path):
    study = toy_study("random", parallel=3, trials=24, evals=EVALS, pruner=FORESIGHT)
    one, other = (drive(study, tmp_path / str(seed), Random(seed), toy_result) for seed in (0, 1))
    assert one == other
    assert "pruned" in {trial.state for trial in one}
