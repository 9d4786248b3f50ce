"""Which trials published rules propose, with which values: a function of the study file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hpstudy.running.opponents import tuned_lr
from hpstudy.search.rule_trials import rule_runs, rule_trials, sizes
from hpstudy.search.rules import power_lines, step_law
from hpstudy.study import Study
from tests.helpers.search import LOSS, SPEED, drive, toy_study
from tests.helpers.study_files import parse, text

JOINT = {
    "lr": {"low": 1e-4, "high": 0.1},
    "beta2": {"low": 0.9, "high": 0.9999},
    "weight_decay": {"low": 1e-3, "high": 10.0},
    "batch_tokens": {"choices": [1024, 2048, 4096]},
}


def study(rules: Any = "auto", search: dict[str, Any] | None = None, **edits: Any) -> Study:
    space = JOINT if search is None else search
    hparams = {} if {"batch_tokens", "batch_fraction"} & set(space) else {"batch_tokens": 4096}
    overrides = {"batch_tokens": 4096}
    tables = {"format": 4, "budget__rules": rules, "search": space, "hparams": hparams}
    return parse(text(**tables, baseline={"overrides": overrides}, **edits))


def names(found: Study) -> dict[int, str]:
    return {number: trial.rule for number, trial in rule_trials(found).items()}


def test_one_trial_in_four_is_a_rules_and_the_best_joint_guess_comes_first() -> None:
    assert names(study()) == {
        1: "combined", 5: "step-law", 9: "half-life", 13: "power-lines", 17: "sqrt-batch", 21: "batch-0.3",
    }  # fmt: skip


def test_combined_rules_build_on_one_another() -> None:
    found = study()
    law = step_law(sizes(found), found.baseline)
    combined = rule_trials(found)[1]
    assert law["batch_tokens"] == pytest.approx(1155.4, abs=0.1)  # 0.58 * 600,000^0.571
    assert combined.values["lr"] == law["lr"]
    assert (combined.values["batch_tokens"], combined.moved) == (1024, {"batch_tokens": law["batch_tokens"]})
    assert combined.values["beta2"] == pytest.approx(0.5 ** (1024 / 60_000))  # of the batch that Step Law chose
    decay = power_lines(sizes(found), replace(found.baseline, lr=law["lr"], batch_tokens=1024))["weight_decay"]
    assert combined.values["weight_decay"] == decay


def test_a_rule_alone_leaves_the_other_keys_at_the_baselines_values() -> None:
    trial = rule_trials(study())[5]
    assert {key: trial.values[key] for key in ("beta2", "weight_decay")} == {"beta2": 0.95, "weight_decay": 0.1}


def test_a_value_beyond_the_range_moves_to_its_end_and_is_kept() -> None:
    found = study(search={"lr": {"low": 1e-4, "high": 1e-3}})
    trial = rule_trials(found)[1]
    assert (trial.rule, trial.values) == ("step-law", {"lr": 1e-3})
    assert trial.moved == {"lr": step_law(sizes(found), found.baseline)["lr"]}


def test_a_choice_is_the_nearest_on_a_log_scale() -> None:
    """The law's 1,155 tokens are 2.3 times 512, and 2,176 are 1.9 times 1,155, which are further off in tokens."""
    for choices, nearest in (([1024, 2048, 4096], 1024), ([512, 2176, 4096], 2176), ([4096, 8192], 4096)):
        found = study(search={"lr": JOINT["lr"], "batch_tokens": {"choices": choices}})
        assert rule_trials(found)[1].values["batch_tokens"] == nearest


def test_no_rule_repeats_an_earlier_trial() -> None:
    at_gpt3s_batch = {"trainer__tokens": 100_000_000, "search": {"lr": JOINT["lr"]}}
    found = parse(text(format=4, **at_gpt3s_batch, hparams={"batch_tokens": 2**19}))
    assert names(found) == {1: "step-law"}  # those for the batch have GPT-3's lr, as the baseline


def test_listed_rules_follow_the_baseline_in_their_order() -> None:
    assert names(study(["power-lines", "combined"])) == {1: "power-lines", 2: "combined"}


def test_the_first_trial_is_a_rules_if_the_space_does_not_hold_the_baseline() -> None:
    found = study(search={"lr": {"low": 1e-3, "high": 0.1}})
    assert names(found) == {0: "step-law", 4: "sqrt-batch"}
    assert rule_trials(found)[4].values == {"lr": 1e-3}


@pytest.mark.parametrize(
    "edits",
    [
        {"rules": []},
        {"search": {"eps": {"choices": [1e-8, 1e-6]}}},
        {"search": {"lr": {"choices": [6e-4, 1e-3]}}, "budget__sampler": "grid"},
        {"objective__metric": ["val/loss", "train/tok_per_sec"]},
    ],
    ids=["none", "keys that no rule knows", "a grid", "two objectives"],
)
def test_what_rules_do_not_speak_about_has_no_trials_of_theirs(edits: dict[str, Any]) -> None:
    assert names(study(**edits)) == {}


def test_a_budget_in_seconds_leaves_the_rules_that_take_no_tokens() -> None:
    assert set(names(study(trainer__tokens=None, trainer__seconds=60)).values()) == {
        "half-life", "sqrt-batch", "batch-0.3",
    }  # fmt: skip


def test_the_opponent_that_tunes_only_lr_has_the_rules_for_lr() -> None:
    assert set(names(tuned_lr(study())).values()) == {"step-law", "sqrt-batch", "batch-0.3"}


def test_more_trials_change_no_rules_trial() -> None:
    assert rule_trials(study(budget__trials=8)) == rule_trials(study(budget__trials=80))


def ruled(**more: Any) -> Study:
    """The toy study, in which rules propose trials."""
    found = toy_study("tpe", **more)
    return replace(found, budget=found.budget.model_copy(update={"rules": "auto"}))


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_search_proposes_the_rules_trials_and_learns_of_them_however_the_results_come_in(
    tmp_path: Path, parallel: int
) -> None:
    found = ruled(parallel=parallel)
    once, again = (drive(found, tmp_path / str(chance), Random(chance)) for chance in (0, 1))
    assert once == again
    proposed = rule_trials(found)
    assert list(rule_runs(found).items()) == [
        ("search-0001", "combined"), ("search-0005", "step-law"), ("search-0009", "power-lines"),
        ("search-0013", "sqrt-batch"), ("search-0017", "batch-0.3"),
    ]  # fmt: skip
    assert all(once[number].values == pytest.approx(proposed[number].values) for number in (1, 5, 9))
    without = drive(toy_study("tpe", parallel=parallel), tmp_path / "without", Random(0))
    assert [trial.values for trial in once[:1]] == [trial.values for trial in without[:1]]
    assert once[11].values != without[11].values


def test_a_study_that_states_no_rules_has_none_before_format_4() -> None:
    search: dict[str, Any] = {"search": JOINT, "hparams": {}, "baseline": {"overrides": {"batch_tokens": 4096}}}
    for version, rules in ((1, ()), (2, ()), (3, ()), (4, "auto"), (None, "auto")):
        assert parse(text(format=version, **search)).budget.rules == rules
    assert rule_trials(parse(text(format=3, **search))) == {}
    assert rule_trials(toy_study(metrics=(LOSS, SPEED))) == rule_trials(toy_study()) == {}


def test_rules_speak_about_coordinates_in_place_of_what_they_stand_for() -> None:
    found = study(
        search={
            "lr_over_rule": {"low": 0.1, "high": 10},
            "beta2_halflife": {"low": 1e-3, "high": 1},
            "weight_decay_timescale": {"low": 1e-3, "high": 1},
            "batch_fraction": {"low": 1e-3, "high": 0.1},
        }
    )
    assert names(found) == {
        0: "combined", 4: "step-law", 8: "half-life", 12: "power-lines", 16: "sqrt-batch",
    }  # fmt: skip
    trial = rule_trials(found)[0]
    tau = 1.08 * (600_000 / sizes(found).all_weights) ** -0.527
    assert trial.values == pytest.approx(
        {
            "lr_over_rule": 1.0,
            "beta2_halflife": 0.1,  # half_life's tenth of a short run
            "weight_decay_timescale": tau,
            "batch_fraction": 0.58 * 600_000**0.571 / 600_000,
        }
    )
    assert trial.moved == {}
