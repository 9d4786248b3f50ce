"""Study files: what a valid one means, and what each invalid one is told."""

# ruff: noqa: E501  (the table of messages quotes each sentence whole)

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.errors import UserError
from hpstudy.hparams import GPT3, RULES
from hpstudy.spec import vocab_size
from hpstudy.study import Choices, FloatRange, Study, changed_keys, list_studies, load_study, parse_study
from hpstudy.study.file import StudyFile

PLACE = Path("studies/x.toml")
BASE: dict[str, Any] = {
    "question": "Is it right?",
    "format": 1,
    "trainer": {"model": "gpt-2x64", "tokenizer": "gpt2:2048", "context": 128, "tokens": 600_000},
    "hparams": {"batch_tokens": 4096},
    "search": {"lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}},
}


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def text(**edits: Any) -> str:
    """BASE with edits, {"search__lr": value}; None removes a key."""
    data = deepcopy(BASE)
    for place, value in edits.items():
        *tables, key = place.split("__")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value
        if value is None:
            del table[key]
    return "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in data.items())


def parse(content: str) -> Study:
    return parse_study(content, name="x", path=PLACE)


def told_of(content: str) -> list[str]:
    """What a file is told, without the place that every sentence begins with; empty when it is valid."""
    try:
        parse(content)
    except UserError as error:
        prefix = "studies/x.toml: "
        return [
            problem.removeprefix(prefix) if problem.startswith(prefix) else f"no place: {problem}"
            for problem in error.problems
        ]
    return []


LR = BASE["search"]["lr"]
GRID = {key: {"choices": [0.1 + 0.001 * step for step in range(100)]} for key in ("beta1", "beta2", "eps")}
MESSAGES: list[tuple[dict[str, Any], str]] = [
    # keys
    ({"search__learning_rate": LR}, '[search] unknown key "learning_rate"; did you mean "lr"?'),
    ({"hparams__weight_deacy": 0.1}, '[hparams] unknown key "weight_deacy"; did you mean "weight_decay"?'),
    ({"baseline__overrides": {"epsilon": 1.0}}, '[baseline] overrides: unknown key "epsilon"; did you mean "eps"?'),
    ({"trainer__contxt": 1}, '[trainer] unknown key "contxt"; did you mean "context"?'),
    ({"budget__sampler": {"name": "tpe", "sed": 1}}, '[budget] sampler: unknown key "sed"; did you mean "seed"?'),
    ({"search__lr__lo": 1}, '[search] lr: unknown key "lo"; did you mean "low"?'),
    ({"serch": {}}, 'unknown key "serch"; did you mean "search"?'),
    ({"wandb__x": 1}, '[wandb] unknown key "x"; known are project, entity'),
    ({"trainer__model": None}, "[trainer] model: missing"),
    ({"search__lr": {"low": 1e-4}}, "[search] lr.high: missing"),
    ({"format": None}, "format: missing; add `format = 1`"),
    ({"search": None}, "[search] missing; a study of the baseline alone has an empty [search]"),
    ({"search__batch_tokens": {"choices": [4096, 8192]}}, "[search] batch_tokens: also in [hparams]; a key is searched or fixed, remove one of them"),
    # types
    ({"format": 2}, "format: must be 1, but got 2"),
    ({"question": ""}, 'question: must have at least 1 character, but got ""'),
    ({"question": 3}, "question: must be a valid string, but got 3"),
    ({"budget": 3}, "[budget] must be a table, but got 3"),
    ({"search__lr": 3}, "[search] lr: must be a table, as in { low = 1e-4, high = 1e-2 } or { choices = [1, 2] }, but got 3"),
    ({"trainer__tokens": 1e9}, "[trainer] tokens: must be a whole number, but got 1000000000.0; write 1_000_000_000"),
    ({"trainer__evals": "10"}, '[trainer] evals: must be a whole number, but got "10"'),
    ({"trainer__evals": True}, "[trainer] evals: must be a whole number, but got true"),
    ({"search__lr__low": math.nan}, "[search] lr.low: must be a finite number, but got NaN"),
    ({"budget__sampler": "tpee"}, "[budget] sampler.name: must be 'tpe', 'gp', 'random', 'qmc' or 'grid', but got \"tpee\"; did you mean \"tpe\"?"),
    # limits
    ({"budget__parallel": 0}, "[budget] parallel: must be greater than or equal to 1, but got 0"),
    ({"budget__trials": 0}, "[budget] trials: must be greater than or equal to 1, but got 0"),
    ({"budget__pruner": {"name": "median", "from_fraction": 1.0}}, "[budget] pruner.from_fraction: must be less than 1, but got 1.0"),
    ({"budget__pruner": {"reduction": 1}}, "[budget] pruner.reduction: must be greater than or equal to 2, but got 1"),
    ({"confirm__seeds": [-1, 2]}, "[confirm] seeds: must be greater than or equal to 0, but got -1"),
    ({"trainer__model": "gpt-125"}, '[trainer] model: unknown preset "gpt-125"; did you mean "gpt-125m"?; known are gpt-2x64, gpt-4x128, gpt-6x256, gpt-8x512, gpt-125m, gpt-350m'),
    ({"trainer__corpus": "fineweb"}, '[trainer] corpus: unknown corpus "fineweb"; did you mean "fineweb-edu"?; known are "asv", "fineweb-edu", "text:PATH" and "shards:GLOB"'),
    ({"trainer__corpus": "text:"}, '[trainer] corpus: "text:" must be followed by a path, but got "text:"'),
    ({"trainer__tokenizer": "gpt2:255"}, '[trainer] tokenizer: "gpt2:N" needs a whole number N with 256 <= N <= 50256, but got "gpt2:255"'),
    ({"trainer__tokenizer": "gtp2"}, '[trainer] tokenizer: unknown tokenizer "gtp2"; did you mean "gpt2"?; known are "gpt2", "gpt2:N" and "bytes"'),
    ({"trainer__seconds": 2e9}, "[trainer] seconds: must be less than or equal to 1000000000, but got 2000000000.0"),
    ({"trainer__evals": 2**63}, "[trainer] evals: a whole number must fit in 64 bits"),
    ({"question": "\x1b[2J"}, 'question: must be one line without control characters, but got "\\u001b[2J"'),
    ({"search__\x1b[31m": LR}, f'[search] unknown key "\\x1b[31m"; known are {", ".join(RULES)}'),
    ({"confirm__seeds": [1] * 1001}, f"[confirm] seeds: must have at most 1000 items after validation, not 1001, but got [{'1, ' * 66}1..."),
    # hyperparameters
    ({"hparams__lr": 0.0, "search": {}}, "[hparams] lr: must lie in (0, inf), but got 0.0"),
    ({"baseline__overrides": {"beta1": 1.0}}, "[baseline] overrides: beta1: must lie in (0, 1), but got 1.0"),
    ({"search__beta2": {"low": 0.99, "high": 0.9}}, "[search] beta2: `low < high` must hold, but got low=0.99, high=0.9"),
    ({"search__lr__low": 0}, "[search] lr: low must lie in (0, inf), but got 0.0"),
    ({"search__beta1": {"low": 0.5, "high": 1.0, "scale": "log1m"}}, "[search] beta1: high must lie in (0, 1), but got 1.0"),
    ({"search__weight_decay": {"low": 0, "high": 1, "scale": "log"}}, '[search] weight_decay: scale "log" needs low > 0, but got low=0; raise low or use scale = "linear"'),
    ({"search__lr__scale": "log1m"}, '[search] lr: scale "log1m" is the log of 1 - value and fits beta1 and beta2; use scale = "log"'),
    ({"hparams__micro_batch": "auto", "search__micro_batch": {"choices": [8, 16]}}, "[search] micro_batch: also in [hparams]; a key is searched or fixed, remove one of them"),
    ({"hparams__micro_batch": "auto", "baseline__overrides": {"micro_batch": 8}}, '[baseline] overrides: micro_batch: "auto" in [hparams] finds one for baseline and trials, but got 8; remove one of them'),
    ({"hparams__micro_batch": "Auto"}, "[hparams] micro_batch: must be a whole number, but got 'Auto'"),
    ({"hparams__lr": "auto", "search": {}}, "[hparams] lr: must be a number, but got 'auto'"),
    ({"search__micro_batch": {"choices": [8, "auto"]}}, "[search] micro_batch: choices must be a whole number, but got 'auto'"),
    ({"search__micro_batch": {"low": 1, "high": 8}}, "[search] micro_batch: has no continuous range; search it with { choices = [8, 16, 32] }"),
    ({"search__eps": {"choices": [1e-8]}}, "[search] eps: choices must be at least two different values, but got [1e-08]"),
    ({"search__eps": {"choices": [1e-8, 1e-8]}}, "[search] eps: choices must be at least two different values, but got [1e-08, 1e-08]"),
    ({"search__eps": {"choices": [1e-8, -1]}}, "[search] eps: choices must lie in (0, inf), but got -1"),
    ({"search__clip_mode": {"choices": ["none", "all"]}}, "[search] clip_mode: choices must be one of global, per_tensor, none, but got 'all'"),
    ({"search__warmup_fraction": {"low": 0.1, "high": 0.9}}, "[search] warmup_fraction: warm-up must end before the decay does, but got warmup_fraction=0.9 > decay_fraction=0.866667"),
    # between keys
    ({"trainer__tokens": None}, "[trainer] tokens: a run's budget is stated in tokens or in seconds, exactly one, but got neither"),
    ({"trainer__seconds": 60}, "[trainer] tokens: a run's budget is stated in tokens or in seconds, exactly one, but got tokens=600000 and seconds=60"),
    ({"trainer__tokens": 4095}, "[hparams] batch_tokens: a run must hold at least one step, but got 4096 > [trainer] tokens=4095"),
    ({"hparams": {}, "trainer__tokens": 500_000}, "[hparams] batch_tokens: a run must hold at least one step, but got 524288 > [trainer] tokens=500000"),
    ({"trainer__model": {"layers": 2, "heads": 3, "width": 64}}, "[trainer] model: width must be a multiple of heads, but got width=64, heads=3"),
    ({"trainer__val_tokens": 128}, "[trainer] val_tokens: must hold a sequence and its last target, context + 1 = 129, but got 128"),
    ({"trainer__corpus": "fineweb-edu"}, '[trainer] tokenizer: "fineweb-edu" comes tokenized with "gpt2", but got "gpt2:2048"'),
    ({"hparams__batch_tokens": 5000}, "[hparams] batch_tokens: must be a multiple of micro_batch x context, but 5000 is not for micro_batch 13 at context 128; the nearest that work: 4992, 6656"),
    ({"search__micro_batch": {"choices": [4, 24, 48]}}, "[hparams] batch_tokens: must be a multiple of micro_batch x context, but 4096 is not for micro_batch 24, 48 at context 128; the nearest that work: 6144"),
    ({"baseline__overrides": {"micro_batch": 5}}, "[hparams] batch_tokens: must be a multiple of micro_batch x context, but 4096 is not for micro_batch 5 at context 128; the nearest that work: 10240"),
    ({"hparams": {}, "search__batch_tokens": {"choices": [4096, 8192]}, "trainer__tokens": 500_000}, "[baseline] overrides: batch_tokens: a run must hold at least one step, but got 524288 > [trainer] tokens=500000"),
    ({"objective__metric": "val/los"}, "[objective] metric: must be 'val/loss' or 'train/tok_per_sec', but got \"val/los\"; did you mean \"val/loss\"?"),
    ({"objective__metric": ["val/loss", "val/loss"]}, '[objective] metric: two objectives must differ, but got ["val/loss", "val/loss"]'),
    ({"objective": {"metric": "train/tok_per_sec", "goal": "minimize"}}, '[objective] goal: must be ["maximize"] for ["train/tok_per_sec"], but got ["minimize"]; leave it out'),
    ({"objective__metric": ["val/loss", "train/tok_per_sec"], "budget__pruner": "median"}, '[budget] pruner: "median" judges val/loss alone, but the objective is ["val/loss", "train/tok_per_sec"]; use pruner = "none"'),
    ({"budget__pack": 5}, "[budget] pack: `pack <= parallel` must hold, but got pack=5, parallel=4"),
    ({"budget__pack": "fast"}, '[budget] pack: must be a whole number of at least 1, or "auto", but got "fast"'),
    ({"budget__pack": 0}, '[budget] pack: must be a whole number of at least 1, or "auto", but got 0'),
    ({"budget__pack": "auto", "objective__metric": "train/tok_per_sec"}, '[budget] pack: [objective] train/tok_per_sec measures the speed of one trial at a time, but got "auto"; use pack = 1'),
    ({"budget__pack": 2, "trainer__tokens": None, "trainer__seconds": 60}, "[budget] pack: [trainer] seconds measures the speed of one trial at a time, but got 2; use pack = 1"),
    ({"budget__sampler": "grid"}, '[budget] sampler: "grid" needs choices, but these are ranges: lr'),
    ({"search": GRID, "budget__sampler": "grid"}, '[budget] sampler: "grid" takes at most 100,000 points, but got 1,000,000; take "random"'),
    ({"search": {}, "budget__trials": 2}, "[budget] trials: an empty [search] has one trial, the baseline, but got 2"),
    ({"yes": "good"}, "yes: must be 'better', 'worse', 'equivalent', 'faster' or 'slower', but got \"good\""),
    ({"yes": ["better", "faster"]}, 'yes: the verdict is on val/loss, so it can be "better", "worse", "equivalent", but got "faster"'),
    ({"yes": "better", "objective__metric": "train/tok_per_sec"}, 'yes: the verdict is on train/tok_per_sec, as the only objective, so it can be "faster", "slower", but got "better"'),
    ({"yes": "better", "search": {}}, "yes: an empty [search] compares nothing, so the question has no yes or no; leave it out"),
    ({"confirm__seeds": [7, 8, 7]}, "[confirm] seeds: must differ, but these are there twice: 7"),
    ({"confirm__seeds": [0, 1]}, "[confirm] seeds: must be fresh, but 0 is the search's own [trainer] seed; choose another"),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "sentence"), MESSAGES, ids=[sentence[:60] for _, sentence in MESSAGES])
def test_one_mistake_is_told_in_one_sentence_with_place_rule_value_and_remedy(
    edits: dict[str, Any], sentence: str
) -> None:
    assert told_of(text(**edits)) == [sentence]


def test_all_problems_of_a_file_are_told_at_once() -> None:
    told = told_of(
        text(
            question=None,
            trainer__tokens=None,
            trainer__evals=0,
            hparams__batch_tokens=5000,
            search__learning_rate=LR,
            search__beta2={"low": 0.99, "high": 0.9},
            budget__pack=9,
            confirm__seed=[1],
            confirm__seeds=[0, 0],
        )
    )
    assert sorted(problem.split(":")[0] for problem in told) == sorted(
        [
            "question",
            "[trainer] evals",
            '[confirm] unknown key "seed"; did you mean "seeds"?',
            '[search] unknown key "learning_rate"; did you mean "lr"?',
            "[search] beta2",
            "[trainer] tokens",
            "[hparams] batch_tokens",
            "[budget] pack",
            "[confirm] seeds",
            "[confirm] seeds",
        ]
    )


def test_a_rule_between_keys_is_silent_while_one_of_them_is_wrong() -> None:
    assert told_of(text(trainer__context="128", hparams__batch_tokens=5000)) == [
        '[trainer] context: must be a whole number, but got "128"'
    ]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('question = "a"\nformat = = 1', "line 2, column 10"),
        ("a = 1\nb = [1,\n", "end of document"),
        ("[search]\n[search]", "line 2"),
    ],
)
def test_a_syntax_error_is_told_with_line_and_column(content: str, where: str) -> None:
    (problem,) = told_of(content)
    assert problem.startswith("not valid TOML: ")
    assert where in problem


def test_defaults_are_those_of_the_documents() -> None:
    study = parse(
        'question = "?"\nformat = 1\n[trainer]\nmodel = "gpt-125m"\ntokens = 1_000_000_000\n'
        "[search]\nlr = { low = 1e-4, high = 1e-2 }"
    )
    spec = study.spec
    assert (spec.corpus, spec.tokenizer, spec.context, spec.evals) == ("asv", "gpt2", 1024, 20)
    assert (spec.seed, spec.threads, spec.precision, spec.val_tokens) == (0, 1, "auto", 2**16)
    assert (study.budget.trials, study.budget.parallel, study.budget.pack) == (16, 4, 1)
    assert asdict(study.budget.sampler) == {"name": "tpe", "startup": 10, "seed": 0}
    assert asdict(study.budget.pruner) == {"name": "none", "startup": 5, "from_fraction": 0.3, "reduction": 3}
    assert asdict(study.confirm) == {
        "seeds": (101, 102, 103, 104, 105),
        "top": 1,
        "margin": 0.01,
        "design": "paired",
        "speedup": False,
    }
    assert [asdict(o) for o in study.objectives] == [{"metric": "val/loss", "direction": "minimize"}]
    assert (study.project, study.entity, study.vocab_size) == ("hpstudy", None, 50257)
    assert study.space == {"lr": FloatRange(low=1e-4, high=1e-2, scale="linear")}
    assert study.warnings == ()


def test_a_grid_has_as_many_trials_as_points_and_an_empty_search_one() -> None:
    grid = {"eps": {"choices": [1e-8, 1e-4]}, "beta1": {"choices": [0.9, 0.8, 0.7]}}
    assert parse(text(search=grid, budget__sampler="grid")).budget.trials == 6
    assert parse(text(search={})).budget.trials == 1
    assert parse(text(search={})).baseline_proposal() == {}


def test_the_goal_of_speed_is_more_of_it() -> None:
    (objective,) = parse(text(objective__metric="train/tok_per_sec")).objectives
    assert objective.direction == "maximize"


def test_a_model_may_be_a_table() -> None:
    model = {"layers": 3, "heads": 2, "width": 32}
    assert asdict(parse(text(trainer__model=model)).spec.model) == model


def test_a_whole_number_and_the_same_float_are_one_value() -> None:
    whole, real = parse(text(hparams__grad_clip=1)), parse(text(hparams__grad_clip=1.0))
    assert json.dumps(whole.resolved()) == json.dumps(real.resolved())


# Hyperparameters of trials and of the baseline


def test_proposals_lie_over_hparams_and_hparams_over_gpt3() -> None:
    study = parse(text(hparams__eps=1e-6, hparams__lr=None, baseline__overrides={"beta1": 0.8}))
    trial = study.trial_hparams({"lr": 3e-3}, 600_000)
    assert (trial.lr, trial.eps, trial.beta1, trial.beta2) == (3e-3, 1e-6, 0.9, 0.95)
    baseline = study.baseline_hparams(600_000)
    assert (baseline.lr, baseline.eps, baseline.beta1) == (6e-4, 1e-6, 0.8)


def test_warmup_is_scaled_where_nobody_set_it_and_kept_where_somebody_did() -> None:
    ten_steps = 10 * 4096 / 600_000
    scaled = parse(text())
    assert scaled.trial_hparams({"lr": 1e-3}, 600_000).warmup_fraction == pytest.approx(ten_steps)
    assert scaled.baseline_hparams(600_000).warmup_fraction == pytest.approx(ten_steps)
    assert scaled.trial_hparams({"lr": 1e-3}, None).warmup_fraction == 0.01
    fixed = parse(text(hparams__warmup_fraction=0.002))
    assert fixed.trial_hparams({"lr": 1e-3}, 600_000).warmup_fraction == 0.002
    searched = parse(text(search__warmup_fraction={"low": 0.001, "high": 0.2}))
    assert searched.trial_hparams({"lr": 1e-3, "warmup_fraction": 0.003}, 600_000).warmup_fraction == 0.003
    assert searched.baseline_hparams(600_000).warmup_fraction == pytest.approx(ten_steps)


def test_a_scaled_warmup_ends_before_a_short_decay() -> None:
    study = parse(text(trainer__tokens=8192, hparams__decay_fraction=0.2))
    assert study.trial_hparams({"lr": 1e-3}, 8192).problems() == []


@pytest.mark.parametrize(
    ("batch_tokens", "micro_batch"), [(4096, 16), (128, 1), (3 * 128, 3), (17 * 128, 1), (18 * 128, 9)]
)
def test_an_unset_micro_batch_is_the_largest_divisor_up_to_16(batch_tokens: int, micro_batch: int) -> None:
    study = parse(text(hparams__batch_tokens=batch_tokens))
    assert study.trial_hparams({"lr": 1e-3}, None).micro_batch == micro_batch
    assert study.spec.ramp_multiple == micro_batch


@pytest.mark.parametrize("found", [4, 32])
def test_a_micro_batch_to_be_found_is_frozen_as_auto_and_moves_no_ramp(found: int) -> None:
    batches = {"hparams__batch_tokens": None, "search__batch_tokens": {"choices": [4096, 24 * 128]}}
    auto = parse(text(hparams__micro_batch="auto", baseline__overrides={"batch_tokens": 4096}, **batches))
    unset = parse(text(baseline__overrides={"batch_tokens": 4096}, **batches))
    assert auto.auto_micro_batch
    assert not unset.auto_micro_batch
    assert auto.spec == unset.spec
    assert auto.resolved()["hparams.micro_batch"] == "auto"
    assert changed_keys(unset.resolved(), auto.resolved())
    settled = replace(auto, micro_batch_limit=found)
    assert settled.resolved() == auto.resolved()
    assert settled.baseline_hparams(None).micro_batch == found
    shorter = settled.trial_hparams({"lr": 1e-3, "batch_tokens": 24 * 128}, None)
    assert shorter.micro_batch == min(found, 24)  # the largest divisor that is no larger


def test_ramp_batches_fit_every_micro_batch_that_may_occur() -> None:
    searched = parse(text(search__micro_batch={"choices": [4, 8]}, objective__metric="train/tok_per_sec"))
    assert searched.spec.ramp_multiple == 16  # the baseline's own 16
    both = parse(
        text(
            hparams={"micro_batch": 3},
            search={"batch_tokens": {"choices": [3072, 6144]}},
            baseline__overrides={"batch_tokens": 4096, "micro_batch": 8},
        )
    )
    assert both.spec.ramp_multiple == 24


@pytest.mark.parametrize(
    ("edits", "largest"),
    [
        ({}, 4096),
        ({"baseline__overrides": {"batch_tokens": 2048}}, 4096),
        ({"baseline__overrides": {"batch_tokens": 8192}}, 8192),
        ({"hparams": {}, "search": {"batch_tokens": {"choices": [4096, 8192]}}}, 2**19),  # the baseline's own
    ],
)
def test_the_largest_batch_is_that_of_any_trial_or_of_the_baseline(edits: dict[str, Any], largest: int) -> None:
    assert parse(text(**edits)).largest_batch_tokens == largest


def test_the_baseline_is_a_point_of_the_space_up_to_rounding() -> None:
    edge = math.nextafter(6e-4, 1)
    study = parse(text(search__lr={"low": edge, "high": 1e-2}))
    assert study.baseline_proposal() == {"lr": edge}


@pytest.mark.parametrize(
    ("edits", "keys"),
    [
        ({"search__lr": {"low": 1e-3, "high": 1e-2}}, "lr"),
        ({"search__eps": {"choices": [1e-4, 1e-6]}}, "eps"),
        ({"search__micro_batch": {"choices": [4, 8]}, "objective__metric": "train/tok_per_sec"}, "micro_batch"),
        ({"baseline__overrides": {"eps": 1e-4}}, "eps"),  # fixed at another value in the trials
    ],
)
def test_a_baseline_outside_the_space_is_a_warning_that_names_the_keys(edits: dict[str, Any], keys: str) -> None:
    study = parse(text(**edits))
    assert study.baseline_proposal() is None
    (warning,) = study.warnings
    assert warning.startswith(f"[search] {keys}: no trial can have the baseline's value")


def test_a_micro_batch_searched_for_the_loss_alone_is_a_warning() -> None:
    search = {"micro_batch": {"choices": [8, 16]}}
    (warning,) = parse(text(search=search)).warnings
    assert warning.startswith("[search] micro_batch: changes speed and rounding only")
    assert parse(text(search=search, trainer__tokens=None, trainer__seconds=60)).warnings == ()
    assert parse(text(search=search, objective__metric=["val/loss", "train/tok_per_sec"])).warnings == ()


def test_more_evaluations_than_steps_and_too_few_seeds_are_warnings() -> None:
    warnings = parse(text(trainer__tokens=40_960, confirm__seeds=[7])).warnings
    assert [warning.split(":")[0] for warning in warnings] == ["[trainer] evals", "[confirm] seeds"]


# Names and files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "alpha.toml").write_text(text(), encoding="utf-8")
    (tmp_path / "beta.toml").write_text("question = ", encoding="utf-8")
    return tmp_path


def test_a_study_is_found_by_name_and_by_path(folder: Path) -> None:
    assert load_study("alpha", folder) == load_study(str(folder / "alpha.toml"))
    assert load_study("alpha", folder).name == "alpha"


def test_an_unknown_study_is_told_the_known_ones_and_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError) as told:
        load_study("alhpa", folder)
    assert str(told.value) == (
        f'{folder / "alhpa.toml"}: no such study; did you mean "alpha"?; known in {folder}: alpha, beta'
    )


@pytest.mark.parametrize("name", ["../alpha", "a/b", "..", "", ".hidden", "-x", "a b", "a" * 300, "alpha\n"])
def test_a_name_cannot_leave_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="a name has at most 64 letters"):
        load_study(name, folder)


def test_a_file_whose_stem_is_no_name_is_refused(folder: Path) -> None:
    path = folder / "my study.toml"
    path.write_text(text(), encoding="utf-8")
    with pytest.raises(UserError, match=r'study "my study": .*rename the file'):
        load_study(str(path))


def test_a_file_that_is_not_utf8_is_told_the_byte(folder: Path) -> None:
    (folder / "latin.toml").write_bytes(b'question = "caf\xe9"')
    with pytest.raises(UserError, match="must be UTF-8, but byte 15 is not"):
        load_study("latin", folder)


def test_list_has_each_question_or_the_error_of_the_file(folder: Path) -> None:
    (alpha, question), (beta, error) = list_studies(folder)
    assert (alpha, question, beta) == ("alpha", "Is it right?", "beta")
    assert error.startswith(f"{folder / 'beta.toml'}: not valid TOML")


def test_the_first_studies_of_an_empty_place_are_none(tmp_path: Path) -> None:
    assert list_studies(tmp_path / "absent") == []


# What may change once a study has begun


def test_resolved_is_flat_json_and_holds_every_default() -> None:
    resolved = parse(text()).resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["trainer.val_tokens"] == 2**16
    assert resolved["trainer.model.layers"] == 2
    assert resolved["search.lr"] == {"low": 1e-4, "high": 1e-2, "scale": "log"}
    assert resolved["budget.sampler.name"] == "tpe"
    assert resolved["hparams.weight_decay"] == 0.1
    assert resolved["baseline.warmup_fraction"] is None
    assert "hparams.lr" not in resolved


def test_a_default_written_out_is_no_change() -> None:
    plain = parse(text()).resolved()
    spelled = parse(text(hparams__weight_decay=0.1, budget__sampler="tpe", trainer__seed=0)).resolved()
    assert changed_keys(plain, spelled) == []


def test_a_changed_key_is_told_with_both_values() -> None:
    now = parse(text(search__lr__low=1e-3, question="Is it wrong?", confirm__margin=0.02)).resolved()
    assert changed_keys(parse(text()).resolved(), now) == [
        'question: was "Is it right?", is "Is it wrong?"',
        "[confirm] margin: was 0.01, is 0.02",
        '[search] lr: was {"low": 0.0001, "high": 0.01, "scale": "log"}, '
        'is {"low": 0.001, "high": 0.01, "scale": "log"}',
    ]


def test_what_a_yes_is_is_frozen_too() -> None:
    told = changed_keys(parse(text(yes="better")).resolved(), parse(text(yes=["better", "equivalent"])).resolved())
    assert told == ['yes: was ["better"], is ["better", "equivalent"]']


def test_a_key_that_joins_the_search_is_a_change() -> None:
    now = parse(text(search__eps={"choices": [1e-8, 1e-4]})).resolved()
    assert changed_keys(parse(text()).resolved(), now) == [
        "[hparams] eps: was 1e-08, is absent",
        '[search] eps: was absent, is {"values": [1e-08, 0.0001]}',
    ]


def test_trials_and_seeds_may_grow_but_not_shrink() -> None:
    small = parse(text(budget__trials=8, confirm__seeds=[1, 2])).resolved()
    large = parse(text(budget__trials=9, confirm__seeds=[1, 2, 3])).resolved()
    assert changed_keys(small, large) == []
    assert changed_keys(large, small) == [
        "[budget] trials: was 9, is 8",
        "[confirm] seeds: was [1, 2, 3], is [1, 2]",
    ]
    assert changed_keys(small, {**small, "confirm.seeds": [2, 1, 3]}) != []


def test_a_key_the_study_began_without_may_have_its_default_only() -> None:
    now = parse(text()).resolved()
    before = {key: value for key, value in now.items() if key not in ("trainer.threads", "hparams.eps")}
    assert changed_keys(before, now) == []
    assert changed_keys(before, {**now, "trainer.threads": 2}) == ["[trainer] threads: was absent, is 2"]


# Properties

FLOAT_KEYS = sorted(RULES.keys() - {"clip_mode", "batch_tokens", "micro_batch", "warmup_fraction", "decay_fraction"})


@st.composite
def ranges(draw: st.DrawFn, key: str) -> dict[str, Any]:
    """A legal dimension of a continuous key."""
    rule = RULES[key]
    upper = min(rule.high, 100.0) - (1e-3 if rule.high_open else 0)
    low = draw(st.floats(min_value=rule.low + 1e-6, max_value=upper / 2))
    high = draw(st.floats(min_value=low * 1.01, max_value=upper))
    scales = ["linear", "log", *(["log1m"] if key.startswith("beta") else [])]
    return {"low": low, "high": high, "scale": draw(st.sampled_from(scales))}


@st.composite
def study_texts(draw: st.DrawFn) -> dict[str, Any]:
    """The edits that make a valid study of BASE."""
    searched = draw(st.lists(st.sampled_from(FLOAT_KEYS), unique=True, max_size=4))
    sequences = draw(st.integers(min_value=1, max_value=64))
    return {
        "search": {key: draw(ranges(key)) for key in searched},
        "hparams__batch_tokens": 128 * sequences,
        "trainer__evals": draw(st.integers(min_value=1, max_value=100)),
        "trainer__seed": draw(st.integers(min_value=0, max_value=100)),
        "budget": {
            "parallel": draw(st.integers(min_value=1, max_value=9)),
            "sampler": draw(st.sampled_from(["tpe", "gp", "qmc"])),
        },
    }


@settings(max_examples=150, deadline=None)
@given(study_texts())
def test_any_valid_study_parses_and_its_baseline_is_legal(edits: dict[str, Any]) -> None:
    study = parse(text(**edits))
    assert study.baseline_hparams(study.spec.tokens).problems() == []
    assert all(isinstance(dimension, FloatRange) for dimension in study.space.values())
    assert study.spec.ramp_multiple <= GPT3.micro_batch
    ends = {key: dimension.low for key, dimension in study.space.items() if isinstance(dimension, FloatRange)}
    assert study.trial_hparams(dict(ends), study.spec.tokens).problems() == []
    assert changed_keys(study.resolved(), parse(text(**edits)).resolved()) == []


ANYTHING = st.recursive(
    st.none().map(lambda _: "x")
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_subnormal=False)
    | st.text(alphabet="abc:/12 ", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "choices", "name"]), inner, max_size=3)
    ),
    max_leaves=5,
)
SECTIONS = {
    "trainer": ["model", "corpus", "tokenizer", "context", "tokens", "seconds", "evals", "val_tokens", "seed", "precision"],
    "hparams": list(RULES),
    "search": list(RULES),
    "baseline": ["name", "also", "overrides"],
    "objective": ["metric", "goal"],
    "budget": ["trials", "parallel", "pack", "sampler", "pruner"],
    "confirm": ["seeds", "top", "margin", "design", "speedup"],
    "wandb": ["project", "entity"],
}  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([(s, k) for s, keys in SECTIONS.items() for k in keys]), ANYTHING)
def test_a_mutated_key_is_valid_or_is_named(place: tuple[str, str], value: Any) -> None:
    section, key = place
    told = told_of(text(**{f"{section}__{key}": value}))
    assert all(sentence.startswith("[") for sentence in told)
    # other sentences may follow from it, as when a batch no longer divides
    assert not told or any(key in sentence for sentence in told)


@given(st.text(alphabet="qx[]={}\"'\n#1.", max_size=40))
def test_any_text_is_a_study_or_a_user_error(content: str) -> None:
    with pytest.raises(UserError):
        parse(content)


def test_the_documented_keys_are_all_there_are() -> None:
    assert set(SECTIONS) == set(StudyFile.model_fields) - {"question", "yes", "format"}


@pytest.mark.parametrize(("name", "size"), [("gpt2", 50257), ("bytes", 256), ("gpt2:256", 256), ("gpt2:50256", 50256)])
def test_a_tokenizer_has_its_unpadded_vocabulary(name: str, size: int) -> None:
    assert vocab_size(name) == size


@pytest.mark.parametrize(
    "name", ["gpt2:", "gpt2:0", "gpt2:50257", "gpt2:-300", "gpt2:³³³", "gpt2:4e3", "gpt3", "", "bytes:256"]
)
def test_an_unknown_tokenizer_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        vocab_size(name)


def test_choices_hold_numbers_as_their_key_has_them() -> None:
    study = parse(text(search={"grad_clip": {"choices": [1, 2]}, "clip_mode": {"choices": ["none", "global"]}}))
    assert study.space["grad_clip"] == Choices(values=(1.0, 2.0))
    assert replace(study, name="y") != study
