"""The rules for hyperparameters and between keys: every broken rule gives one full sentence."""

# ruff: noqa: E501  (the table quotes each sentence whole)

from __future__ import annotations

import time
from typing import Any

import pytest

from hpstudy.hparams import SEARCHABLE
from tests.helpers.study_files import LR, problems_of, text

GRID = {key: {"choices": [0.1 + 0.001 * step for step in range(100)]} for key in ("beta1", "beta2", "eps")}
PROBLEMS: list[tuple[dict[str, Any], str]] = [
    # hyperparameters
    ({"search__learning_rate": LR}, '[search] unknown key "learning_rate"; did you mean "lr"?'),
    ({"hparams__weight_deacy": 0.1}, '[hparams] unknown key "weight_deacy"; did you mean "weight_decay"?'),
    ({"baseline__overrides": {"epsilon": 1.0}}, '[baseline] overrides: unknown key "epsilon"; did you mean "eps"?'),
    ({"search__batch_tokens": {"choices": [4096, 8192]}}, "[search] batch_tokens: also in [hparams]; a key is searched or fixed, remove one of them"),
    ({"search__\x1b[31m": LR}, f'[search] unknown key "\\x1b[31m"; known are {", ".join(SEARCHABLE)}'),
    ({"hparams__lr": 0.0, "search": {}}, "[hparams] lr: must be in (0, inf), but got 0.0"),
    ({"baseline__overrides": {"beta1": 1.0}}, "[baseline] overrides: beta1: must be in (0, 1), but got 1.0; such as 0.9 or 0.95"),
    ({"search__beta2": {"low": 0.99, "high": 0.9}}, "[search] beta2: `low < high` must hold, but got low=0.99, high=0.9"),
    ({"search__lr__low": 0}, "[search] lr: low must be in (0, inf), but got 0.0"),
    ({"search__beta1": {"low": 0.5, "high": 1.0, "scale": "log1m"}}, "[search] beta1: high must be in (0, 1), but got 1.0; such as 0.9 or 0.95"),
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
    ({"search__eps": {"choices": [1e-8, -1]}}, "[search] eps: choices must be in [1e-37, inf), but got -1"),
    ({"search__clip_mode": {"choices": ["none", "all"]}}, "[search] clip_mode: choices must be one of global, per_tensor, none, but got 'all'"),
    ({"search__warmup_fraction": {"low": 0.1, "high": 0.9}}, "[search] warmup_fraction: warm-up must end before the decay does, but got warmup_fraction=0.9 > decay_fraction=0.866667"),
    # between keys
    ({"trainer__tokens": None}, "[trainer] tokens: a run's budget is stated in tokens or in seconds, exactly one, but got neither"),
    ({"trainer__seconds": 60}, "[trainer] tokens: a run's budget is stated in tokens or in seconds, exactly one, but got tokens=600000 and seconds=60"),
    ({"trainer__tokens": 4095}, "[hparams] batch_tokens: a run must hold at least one step, but got 4096 > [trainer] tokens=4095; take e.g. 128 (31 steps)"),
    ({"trainer__tokens": 100, "hparams": {}}, "[hparams] batch_tokens: a run must hold at least one step, but got GPT-3's 524288 > [trainer] tokens=100; state it, e.g. 128, with tokens=2560 (20 steps)"),
    ({"trainer__tokens": 30_000, "hparams": {"micro_batch": 16, "batch_tokens": 32_768}}, "[hparams] batch_tokens: a run must hold at least one step, but got 32768 > [trainer] tokens=30000; take e.g. 2048 (14 steps)"),
    ({"hparams__batch_tokens": 16}, "[hparams] batch_tokens: must be a multiple of context, but 16 is not at context 128; the nearest that work: 128; it counts tokens, not sequences"),
    ({"hparams": {}, "trainer__tokens": 500_000}, "[hparams] batch_tokens: a run must hold at least one step, but got GPT-3's 524288 > [trainer] tokens=500000; state it, e.g. 1024 (488 steps)"),
    ({"trainer__model": {"layers": 2, "heads": 3, "width": 64}}, "[trainer] model: width must be a multiple of heads, but got width=64, heads=3; e.g. heads=2"),
    ({"trainer__val": "val/*.bin"}, '[trainer] val: only a corpus "shards:GLOB" or "raw:GLOB" has files that validate, but the corpus is "asv"; leave it out'),
    ({"trainer__val_tokens": 127}, "[trainer] val_tokens: must hold one sequence, context = 128, but got 127"),
    ({"trainer__corpus": "fineweb-edu"}, '[trainer] tokenizer: "fineweb-edu" is tokenized with "gpt2", but got "gpt2:2048"'),
    ({"hparams__batch_tokens": 5000}, "[hparams] batch_tokens: must be a multiple of context, but 5000 is not at context 128; the nearest that work: 4992, 5120"),
    ({"search__micro_batch": {"choices": [4, 24, 48]}}, "[hparams] batch_tokens: must be a multiple of micro_batch x context, but 4096 is not for micro_batch 24, 48 at context 128; the nearest that work: 6144"),
    ({"baseline__overrides": {"micro_batch": 5}}, "[hparams] batch_tokens: must be a multiple of micro_batch x context, but 4096 is not for micro_batch 5 at context 128; the nearest that work: 3840, 4480"),
    ({"hparams": {}, "search__batch_tokens": {"choices": [4096, 8192]}, "trainer__tokens": 500_000}, "[baseline] overrides: batch_tokens: a run must hold at least one step, but got GPT-3's 524288 > [trainer] tokens=500000; state it, e.g. 1024 (488 steps)"),
    ({"trainer__gpus": 2, "trainer__processes": 2}, "[trainer] processes: a training takes several GPUs or, on a CPU, several processes, but got gpus=2 and processes=2; remove one of them"),
    ({"trainer__gpus": 2, "budget__pack": 4}, "[budget] pack: one training on 2 GPUs cannot train several trials as one; leave it out"),
    ({"trainer__gpus": 3}, "[hparams] batch_tokens: must be a multiple of context for each of 3 GPUs, but 4096 is not at context 128; the nearest that work: 3840, 4224"),
    ({"trainer__processes": 4, "search__micro_batch": {"choices": [8, 16]}}, "[hparams] batch_tokens: must be a multiple of micro_batch x context for each of 4 processes, but 4096 is not for micro_batch 16 at context 128; the nearest that work: 8192"),
    ({"trainer__gpus": 4, "trainer__tokens": 4000}, "[hparams] batch_tokens: a run must hold at least one step, but got 4096 > [trainer] tokens=4000; take e.g. 512 (7 steps)"),
    ({"objective__metric": ["val/loss", "val/loss"]}, '[objective] metric: two objectives must differ, but got ["val/loss", "val/loss"]'),
    ({"objective": {"metric": "train/tok_per_sec", "goal": "minimize"}}, '[objective] goal: must be ["maximize"] for ["train/tok_per_sec"], but got ["minimize"]; leave it out'),
    ({"objective__metric": ["val/loss", "train/tok_per_sec"], "budget__pruner": "median"}, '[budget] pruner: "median" compares only val/loss, but the objective is ["val/loss", "train/tok_per_sec"]; use pruner = "none"'),
    ({"trainer__tokens": None, "trainer__seconds": 60, "budget__pruner": "foresight"}, '[budget] pruner: "foresight" must know the schedule in tokens, but [trainer] gives seconds; give tokens, or use pruner = "median"'),
    ({"budget__sampler": "random", "budget__warm_start": "old"}, '[budget] warm_start: needs a sampler that learns from trials, tpe or gp, but got "random"'),
    ({"objective__metric": ["val/loss", "train/tok_per_sec"], "budget__warm_start": "old"}, '[budget] warm_start: needs val/loss as the only objective, but got ["val/loss", "train/tok_per_sec"]; speeds of other machines say nothing here'),
    ({"budget__warm_start": ["old", "old"]}, "[budget] warm_start: must name each source once, but these are there twice: old"),
    ({"budget__warm_start": "wandb:e/s"}, '[budget] warm_start: must be "STUDY", "wandb:ENTITY/PROJECT/STUDY" or "optuna:PATH", but got "wandb:e/s"'),
    ({"budget__sampler": "grid"}, '[budget] sampler: "grid" needs choices, but these are ranges: lr'),
    ({"search": GRID, "budget__sampler": "grid"}, '[budget] sampler: "grid" takes at most 100,000 points, but got 1,000,000; take "random"'),
    ({"search": {"lr": {"choices": [1e-3, 2e-3]}}, "budget": {"sampler": "grid", "rules": ["step-law"]}}, "[budget] rules: a grid tries every point anyway, so no rule proposes any; leave them out"),
    ({"objective__metric": "train/tok_per_sec", "budget__rules": ["step-law"]}, '[budget] rules: predict values for val/loss alone, but the objective is ["train/tok_per_sec"]; leave them out'),
    ({"budget__rules": ["step-law", "step-law"]}, '[budget] rules: "step-law" is listed twice; list it once'),
    ({"budget__rules": ["step-law", "half-life"]}, '[budget] rules: "half-life" speaks about beta2, but [search] has none of them; leave it out'),
    ({"budget__rules": ["step-law"], "trainer__tokens": None, "trainer__seconds": 60}, '[budget] rules: "step-law" takes the tokens of a run, but [trainer] states seconds; state tokens, or leave the rule out'),
    ({"search": {}, "budget__trials": 2}, "[budget] trials: an empty [search] has one trial, the baseline, but got 2"),
    ({"yes": ["better", "faster"]}, 'yes: with [objective] metric ["val/loss"] the verdict can be "better", "worse", "equivalent", but got "faster"'),
    ({"yes": "better", "objective__metric": "train/tok_per_sec"}, 'yes: with [objective] metric ["train/tok_per_sec"] the verdict can be "faster", "slower", but got "better"'),
    ({"yes": "better", "search": {}}, "yes: an empty [search] compares nothing, so the question has no yes or no; leave it out"),
    ({"confirm__seeds": [7, 8, 7]}, "[confirm] seeds: must all differ, but these are listed twice: 7"),
    ({"confirm__seeds": [0, 1]}, "[confirm] seeds: must be fresh, but 0 is the search's [trainer] seed; choose another"),
    ({"confirm": {"seeds": [1_000_000, 7], "design": "independent"}, "trainer__seed": 1_000_007}, '[confirm] seeds: design "independent" gives the baseline each seed + 1000000, but 1000007 is already the search\'s or a candidate\'s seed; choose other seeds'),
    ({"confirm": {"seeds": [7, 1_000_007], "design": "independent"}}, '[confirm] seeds: design "independent" gives the baseline each seed + 1000000, but 1000007 is already the search\'s or a candidate\'s seed; choose other seeds'),
    ({"confirm__looks": [5, 3]}, "[confirm] looks: must ascend, but got [5, 3]"),
    ({"confirm__looks": [3, 5, 5]}, "[confirm] looks: must ascend, but got [3, 5, 5]"),
    ({"confirm": {"looks": [3, 5], "seeds": [1, 2, 3, 4]}}, "[confirm] seeds: the last of looks needs 5, but got 4; leave seeds out"),
    ({"confirm": {"looks": [3, 5], "design": "independent"}}, '[confirm] looks: Welch\'s test has no calibrated race; use design = "paired", or state seeds instead'),
    ({"confirm__looks": [3, 5], "objective__metric": "train/tok_per_sec"}, "[confirm] looks: only val/loss alone has a calibrated race, not a speed; state seeds instead"),
    ({"confirm__looks": [3, 5], "objective__metric": ["val/loss", "train/tok_per_sec"]}, "[confirm] looks: only val/loss alone has a calibrated race, not a speed; state seeds instead"),
    ({"baseline__also": "tuned-lr"}, '[baseline] also: "tuned-lr" needs a search of more than lr, but [search] tunes only lr'),
    ({"baseline__also": "tuned-lr", "search": {}}, '[baseline] also: "tuned-lr" needs a search of more than lr, but [search] tunes nothing'),
    ({"trainer__tokens": None, "trainer__seconds": 60, "search__warmup_fraction": {"low": 0.01, "high": 0.2}}, "[search] warmup_fraction: the baseline's own depends on the run's tokens, which are not known in time with a budget in seconds; fix it in [baseline] overrides, or state the budget in tokens"),
    ({"baseline__overrides": {"warmup_fraction": 0.5, "decay_fraction": 0.4}}, "[baseline] overrides: warmup_fraction: warm-up must end before the decay does, but got warmup_fraction=0.5 > decay_fraction=0.4"),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "sentence"), PROBLEMS, ids=[sentence[:60] for _, sentence in PROBLEMS])
def test_a_broken_rule_gives_one_sentence_with_place_rule_value_and_remedy(
    edits: dict[str, Any], sentence: str
) -> None:
    assert problems_of(text(**edits)) == [sentence]


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    problems = problems_of(
        text(
            question=None,
            trainer__tokens=None,
            trainer__evals=0,
            hparams__batch_tokens=5000,
            search__learning_rate=LR,
            search__beta2={"low": 0.99, "high": 0.9},
            confirm__seed=[1],
            confirm__seeds=[0, 0],
        )
    )
    assert sorted(problem.split(":")[0] for problem in problems) == sorted(
        [
            "question",
            "[trainer] evals",
            '[confirm] unknown key "seed"; did you mean "seeds"?',
            '[search] unknown key "learning_rate"; did you mean "lr"?',
            "[search] beta2",
            "[trainer] tokens",
            "[hparams] batch_tokens",
            "[confirm] seeds",
            "[confirm] seeds",
        ]
    )


def test_a_rule_between_keys_is_not_checked_while_one_of_them_is_wrong() -> None:
    assert problems_of(text(trainer__context="128", hparams__batch_tokens=5000)) == [
        '[trainer] context: must be a whole number, but got "128"; write 128'
    ]


OTHER_TOOLS: list[tuple[dict[str, Any], str]] = [
    (
        {"search__lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        '[search] lr: unknown key "log"; a log scale is scale = "log"',
    ),
    ({"search__lr": {"values": [1e-4, 1e-2]}}, '[search] lr: unknown key "values"; a list is { choices = [1, 2] }'),
    (
        {"search__lr": {"value": 1e-4}},
        '[search] lr: unknown key "value"; a fixed value goes to [hparams], as in lr = 1e-3',
    ),
    (
        {"hparams__batch_size": 8},
        '[hparams] unknown key "batch_size"; batch_tokens counts tokens: sequences times context',
    ),
    (
        {"hparams__gradient_accumulation_steps": 8},
        '[hparams] unknown key "gradient_accumulation_steps"; it follows: batch_tokens divided by context times micro_batch',
    ),
    (
        {"hparams__n_head": 2},
        '[hparams] unknown key "n_head"; the shape is [trainer] model = { layers = 2, heads = 2, width = 64 }',
    ),
    (
        {"trainer__n_layer": 2},
        '[trainer] unknown key "n_layer"; the shape is [trainer] model = { layers = 2, heads = 2, width = 64 }',
    ),
    (
        {"hparams__grad_clip": 0.0},
        '[hparams] grad_clip: must be in (0, inf), but got 0.0; clip_mode = "none" does not clip',
    ),
    (
        {"search__grad_clip": {"choices": [0.0, 1.0]}},
        '[search] grad_clip: choices must be in (0, inf), but got 0.0; clip_mode = "none" does not clip',
    ),
    (
        {"hparams__warmup_iters": 100},
        '[hparams] unknown key "warmup_iters"; warmup_fraction is a share of the run\'s tokens: warm-up steps divided by all steps',
    ),
    (
        {"hparams__warmup_fraction": 100},
        "[hparams] warmup_fraction: must be in [0, 1], but got 100; it is a share of the run's tokens",
    ),
    ({"hparams__min_lr": 6e-5}, '[hparams] unknown key "min_lr"; min_lr_fraction is a share of lr, such as 0.1'),
    (
        {"hparams__max_iters": 600},
        '[hparams] unknown key "max_iters"; [trainer] tokens is the budget: the number of steps times batch_tokens',
    ),
    ({"hparams__betas": [0.9, 0.95]}, '[hparams] unknown key "betas"; state beta1 and beta2'),
    ({"hparams__context": 128}, '[hparams] unknown key "context"; it belongs to [trainer]'),
    ({"trainer__lr": 1e-3}, '[trainer] unknown key "lr"; it belongs to [hparams]'),
    ({"budget__seeds": [1, 2]}, '[budget] unknown key "seeds"; it belongs to [confirm]'),
    ({"method": "bayes"}, 'unknown key "method"; proposals come from [budget] sampler = "tpe"'),
]


@pytest.mark.parametrize(("edits", "problem"), OTHER_TOOLS, ids=[problem[:60] for _, problem in OTHER_TOOLS])
def test_what_other_tools_call_it_gets_the_hint_that_is_right_here(edits: dict[str, Any], problem: str) -> None:
    assert problems_of(text(**edits)) == [problem]


def test_a_range_in_the_words_of_a_sweep_gets_one_hint_a_word() -> None:
    assert problems_of(text(search__lr={"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"})) == [
        '[search] lr: unknown key "min"; did you mean "low"?',
        '[search] lr: unknown key "max"; did you mean "high"?',
        '[search] lr: unknown key "distribution"; a range is { low = 1e-4, high = 1e-2, scale = "log" }',
    ]


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"trainer__threads": 100_000}, "[trainer] threads: must be less than or equal to 512, but got 100000"),
    (
        {"budget__trials": 2**63 - 1},
        "[budget] trials: must be less than or equal to 1000000, but got 9223372036854775807",
    ),
    (
        {"budget__parallel": 2**63 - 1},
        "[budget] parallel: must be less than or equal to 10000, but got 9223372036854775807",
    ),
    ({"trainer__evals": 10**9}, "[trainer] evals: must be less than or equal to 100000, but got 1000000000"),
    (
        {"trainer__val_tokens": 10**12},
        "[trainer] val_tokens: must be less than or equal to 1000000000, but got 1000000000000",
    ),
    ({"trainer__context": 10**9}, "[trainer] context: must be less than or equal to 1048576, but got 1000000000"),
    ({"confirm__top": 10**6}, "[confirm] top: must be less than or equal to 1000, but got 1000000"),
    (
        {"trainer__tokens": 9 * 10**18},
        "[trainer] tokens: must be less than or equal to 1000000000000000, but got 9000000000000000000",
    ),
    (
        {"trainer__tokens": 10**14},
        "[hparams] batch_tokens: a run may hold at most 10,000,000 steps, but [trainer] tokens=100000000000000 at batch_tokens 4096 are 24,414,062,500; raise batch_tokens or lower tokens",
    ),
]


@pytest.mark.parametrize(("edits", "problem"), LIMITS, ids=[problem[:40] for _, problem in LIMITS])
def test_every_number_has_a_limit_that_means_something(edits: dict[str, Any], problem: str) -> None:
    assert problems_of(text(**edits)) == [problem]


HUGE = {
    "thousands of unknown keys": "\n".join(f"k{i} = 1" for i in range(5000)),
    "thousands of dotted keys": "\n".join(f"a{i}.b.c.d = 1" for i in range(5000)),
    "thousands of tables": "\n".join(f"[a{i}.b.c]" for i in range(5000)),
    "one key of thousands of dots": "a." * 5000 + "b = 1",
    "one key with spaces at its dots": "a . " * 5000 + "b = 1",
    "a key of a megabyte": "k" * 900_000 + " = 1",
    "a text of many megabytes": f'k = "{"x" * 5_000_000}"',
    "arrays in arrays": "k = " + "[" * 5000 + "]" * 5000,
}


@pytest.mark.parametrize("huge", HUGE.values(), ids=HUGE)
def test_every_refusal_comes_within_two_seconds_and_on_a_few_lines(huge: str) -> None:
    began = time.monotonic()
    found = problems_of(f"{text()}\n{huge}\n")
    assert time.monotonic() - began < 2
    assert 1 <= len(found) <= 51


def test_of_many_problems_the_first_are_listed_and_the_others_counted() -> None:
    found = problems_of(text() + "".join(f"\nk{i} = 1" for i in range(60)))
    assert len(found) == 51
    assert found[-1] == "and 10 more problems"
