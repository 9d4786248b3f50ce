"""Runs and their ids, the order of runs, and step records as rows."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.files import from_json, to_json
from hpstudy.hparams import GPT3
from hpstudy.records import (
    GLOSSARY,
    TIMES,
    Phase,
    Run,
    StepRecord,
    as_row,
    baseline_run_id,
    bounded_loss,
    confirm_run_id,
    from_row,
    repeats,
    run_order,
    step_differences,
)
from tests.helpers.samples import record

FLOATS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])
TRIALS = st.integers(0, 99_999).map(lambda number: f"{number:04d}")
SEEDS = st.integers(0, 2**32 - 1)


def run(run_id: str, phase: Phase, trial: int | None, seed: int = 0, **changes: object) -> Run:
    return replace(Run(run_id=run_id, phase=phase, trial=trial, seed=seed, tokens=1000, hparams=GPT3), **changes)


# Ids


@pytest.mark.parametrize(
    ("of", "fraction", "run_id"),
    [
        ("search-0007", 1.0, "confirm-0007-s101"),
        ("search-0007", 0.5, "confirm-0007-s101-t50"),
        ("tuned-lr-0003", 1.0, "confirm-tuned-lr-0003-s101"),
        ("tuned-lr-0003", 0.75, "confirm-tuned-lr-0003-s101-t75"),
    ],
)
def test_the_id_of_a_repeated_trial_states_trial_seed_and_fraction(of: str, fraction: float, run_id: str) -> None:
    assert confirm_run_id(of, 101, fraction) == run_id
    assert repeats(run_id) == (of, fraction)


@given(st.sampled_from(["search-", "tuned-lr-"]), TRIALS, SEEDS, st.integers(1, 100))
def test_the_trial_and_fraction_of_a_run_follow_from_its_id(phase: str, trial: str, seed: int, percent: int) -> None:
    of, fraction = phase + trial, percent / 100
    assert repeats(confirm_run_id(of, seed, fraction)) == (of, fraction)


@given(TRIALS, SEEDS)
def test_other_runs_repeat_no_trial(trial: str, seed: int) -> None:
    for run_id in (f"search-{trial}", f"tuned-lr-{trial}", baseline_run_id(seed), "confirm-x-s1", f"confirm-{trial}"):
        assert repeats(run_id) == (None, 1.0)


def test_the_id_of_a_baseline_run_states_its_seed() -> None:
    assert baseline_run_id(101) == "baseline-s101"


# Order


def test_runs_are_ordered_by_phase_then_trial_then_seed() -> None:
    runs = [
        run("search-0002", "search", 2),
        run("search-0010", "search", 10),
        run("baseline-s101", "baseline", None, 101),
        run("baseline-s102", "baseline", None, 102),
        run("confirm-0003-s102", "confirm", 3, 102),
        run("confirm-0007-s101", "confirm", 7, 101),
        run("tuned-lr-0000", "tuned-lr", 0),
    ]
    for shuffled in list(permutations(runs))[::97]:
        assert sorted(shuffled, key=run_order) == runs


# Step records


@given(loss=FLOATS, norm=FLOATS, val_loss=FLOATS | st.none(), tokens=st.integers(1, 10**15))
def test_a_record_survives_its_row_in_a_file(loss: float, norm: float, val_loss: float | None, tokens: int) -> None:
    written = replace(record(3, loss=loss), grad_norm=norm, val_loss=val_loss, tokens=tokens)
    row = from_json(to_json(as_row(written)))
    assert repr(row) == repr(as_row(written))  # repr: NaN differs from itself
    assert repr(from_row(row)) == repr(written)


def test_a_row_has_the_metrics_of_an_evaluation_only_if_there_was_one() -> None:
    evaluation = {"val/loss", "val/index", "val/seconds"}
    all_names = {metric.name for metric in GLOSSARY.values()}
    assert all_names - as_row(record(1)).keys() == evaluation | {"val/bf16_lost"}
    assert evaluation <= as_row(record(1, evaluated=True)).keys()


def test_unknown_keys_of_a_row_are_ignored() -> None:
    assert from_row({**as_row(record(1)), "train/new": 1.0}) == record(1)


def test_a_repeated_step_has_no_differences() -> None:
    broken = record(1, loss=math.nan, evaluated=True)
    assert step_differences(broken, replace(broken)) == ""


def test_the_times_of_a_repeated_step_may_differ() -> None:
    timed = replace(record(1, evaluated=True), step_seconds=9.0, tok_per_sec=1.0, eval_seconds=7.0)
    assert {GLOSSARY[key].name for key in ("step_seconds", "tok_per_sec", "eval_seconds")} == TIMES
    assert step_differences(record(1, evaluated=True), timed) == ""


@pytest.mark.parametrize("key", [key for key, metric in GLOSSARY.items() if metric.name not in TIMES])
def test_any_other_difference_of_a_repeated_step_is_named_with_both_values(key: str) -> None:
    before: StepRecord = replace(record(1, evaluated=True), bf16_lost=0.25)
    again = replace(before, **{key: 3.25})
    name, old = GLOSSARY[key].name, getattr(before, key)
    assert step_differences(before, again) == f"{name} 3.25 where {old} was recorded"


def test_differences_of_the_last_bit_and_of_missing_values_are_named() -> None:
    loss = math.nextafter(2.0, 3.0)
    assert step_differences(record(1, loss=2.0), record(1, loss=loss)) == f"train/loss {loss} where 2.0 was recorded"
    assert step_differences(record(1, evaluated=True), record(1)) == (
        "val/loss None where 5.0 was recorded, val/index None where 1 was recorded"
    )
    assert step_differences(record(1), replace(record(1), val_loss=4.0)) == "val/loss 4.0 where None was recorded"


def test_a_step_that_need_not_repeat_may_differ_in_loss_by_rounding_and_in_no_planned_value() -> None:
    before = replace(record(1, evaluated=True, loss=4.0), bf16_lost=0.25)
    near = replace(before, loss=4.1, val_loss=5.2, grad_norm=9.0, clipped=True, update_to_weight=1.0, bf16_lost=0.5)
    assert step_differences(before, near)
    assert step_differences(before, near, exact=False) == ""
    assert step_differences(before, replace(near, loss=4.5), exact=False) == "train/loss 4.5 where 4.0 was recorded"
    assert step_differences(before, replace(near, lr=0.5), exact=False).startswith("train/lr 0.5 where")
    broken = replace(before, loss=math.nan)
    assert step_differences(broken, broken, exact=False) == ""
    assert step_differences(broken, near, exact=False) == "train/loss 4.1 where nan was recorded"


# Losses


@pytest.mark.parametrize(
    ("loss", "bounded"),
    [(2.0, 2.0), (9.0, math.log(256)), (None, math.log(256)), (math.nan, math.log(256)), (-math.inf, math.log(256))],
)
def test_no_loss_counts_as_worse_than_a_uniform_guess(loss: float | None, bounded: float) -> None:
    assert bounded_loss(loss, 256) == bounded


def test_a_metric_that_the_record_lacks_is_not_compared() -> None:
    assert step_differences(replace(record(1, evaluated=True), bf16_lost=None), record(1, evaluated=True)) == ""
    assert step_differences(record(1, evaluated=True), replace(record(1, evaluated=True), bf16_lost=0.5)) == ""
