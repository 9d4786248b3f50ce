"""A ladder's file: what it may state, its sizes, and the files of its parts."""

# ruff: noqa: E501  (the table quotes each sentence whole)

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpstudy.errors import UserError
from hpstudy.search.rule_trials import rule_trials
from hpstudy.search.sampling import first_proposals
from hpstudy.study import FloatRange
from hpstudy.study.ladder import CHECK, COPIED, Ladder, is_ladder, load_ladder, parse_ladder, write_part
from hpstudy.study.schema import MAX_FIRST
from tests.helpers.study_files import edited, parse, problems_of
from tests.helpers.study_files import text as study_text

PLACE = Path("studies/x.toml")
BASE: dict[str, Any] = {
    "question": "Does it hold?",
    "format": 4,
    "ladder": {
        "models": ["gpt-2x32", "gpt-2x64", "gpt-3x96"],
        "tokens": [200_000, 300_000, 500_000],
        "trials": [16, 12, 8],
        "check": "gpt-4x128",
        "check_tokens": 800_000,
        "target": "gpt-125m",
        "target_tokens": 5_000_000,
    },
    "trainer": {"tokenizer": "bytes", "context": 128},
    "hparams": {"batch_tokens": 2048},
    "search": {"lr_over_rule": {"low": 0.03, "high": 2.0}, "weight_decay": {"low": 1e-3, "high": 1.0}},
}
PER_PARAMETER = {
    "ladder__tokens": None,
    "ladder__check_tokens": None,
    "ladder__target_tokens": None,
    "ladder__tokens_per_parameter": 20,
}
HORIZONS = {
    "ladder__models": None,
    "ladder__check": None,
    "ladder__target": None,
    "trainer__model": "gpt-2x64",
}
POINT = {"lr_over_rule": 0.5, "weight_decay": 0.25}


def text(**edits: Any) -> str:
    """The file BASE with edits such as ladder__tokens=value; None removes a key."""
    return edited(BASE, edits)


def ladder(**edits: Any) -> Ladder:
    return parse_ladder(text(**edits), name="x", path=PLACE)


def problems(content: str, name: str = "x") -> list[str]:
    """Every problem of a file with this content, without the path that each begins with."""
    with pytest.raises(UserError) as error:
        parse_ladder(content, name=name, path=PLACE)
    assert all(problem.startswith(f"{PLACE}: ") for problem in error.value.problems)
    return [problem.removeprefix(f"{PLACE}: ") for problem in error.value.problems]


KNOWN = (
    "known are gpt-2x64, gpt-4x128, gpt-6x256, gpt-8x512, gpt-125m, gpt-350m, gpt-2x32, gpt-3x96, gpt-5x160, gpt-6x192"
)
PROBLEMS: list[tuple[dict[str, Any], str]] = [
    # keys of [ladder]
    ({"ladder": 5}, "[ladder] must be a table, but got 5"),
    ({"ladder__model": ["gpt-2x32"]}, '[ladder] unknown key "model"; did you mean "models"?'),
    ({"ladder__models": ["gpt-2x32"]}, '[ladder] models: must have at least 2 items, not 1, but got ["gpt-2x32"]'),
    ({"ladder__models": "gpt-2x32"}, '[ladder] models: must be a valid list, but got "gpt-2x32"; as in `models = ["gpt-2x32", "gpt-2x64", "gpt-3x96"]`'),
    ({"ladder__models": ["gpt-2x32", "gpt-9x9", "gpt-3x96"]}, f'[ladder] models: unknown preset "gpt-9x9"; did you mean "gpt-3x96"?; {KNOWN}'),
    ({"ladder__models": [{"layers": 1, "heads": 1}, "gpt-2x64", "gpt-3x96"]}, "[ladder] models.width: missing"),
    ({"ladder__tokens": [2e5, 300_000, 500_000]}, "[ladder] tokens: must be a whole number, but got 200000.0; write 200_000"),
    ({"ladder__tokens": list(range(1, 14)), **HORIZONS}, f"[ladder] tokens: must have at most 12 items, not 13, but got {list(range(1, 14))}"),
    ({"ladder__batch": 2.0}, '[ladder] batch: must be a share of the run in (0, 1], or "step-law", but got 2.0'),
    ({"ladder__batch": "chinchilla"}, '[ladder] batch: must be a share of the run in (0, 1], or "step-law", but got "chinchilla"'),
    ({"ladder__trials": 0}, "[ladder] trials: must be a whole number of at least 1, or a list of these, but got 0"),
    ({"ladder__trials": [8, 0, 8]}, "[ladder] trials: must be a whole number of at least 1, or a list of these, but got [8, 0, 8]"),
    ({"ladder__check_seeds": 2}, "[ladder] check_seeds: must be greater than or equal to 3, but got 2"),
    ({"ladder__check_trials": 0}, "[ladder] check_trials: must be greater than or equal to 1, but got 0"),
    ({"ladder__check_margin": 0}, "[ladder] check_margin: must be greater than 0, but got 0"),
    ({"ladder__check_rules": ["decay-to-zero"]}, '[ladder] check_rules: "decay-to-zero" speaks about min_lr_fraction, decay_fraction, of which the file searches none'),
    ({"ladder__check_seeds": 5, "confirm": {"seeds": [1, 2, 3]}}, "[ladder] check_seeds: 5 seeds are to be trained, but [confirm] seeds has 3"),
    ({"ladder__check_rules": ["chinchilla"]}, "[ladder] check_rules: must be 'combined', 'step-law', 'half-life', 'power-lines', 'decay-to-zero', 'sqrt-batch' or 'batch-0.3', but got \"chinchilla\""),
    # between keys of [ladder]
    ({"ladder": {}, "trainer__model": "gpt-2x64"}, '[ladder] models: or tokens must list the rungs, as in `models = ["gpt-2x32", "gpt-2x64", "gpt-3x96"]`'),
    ({"ladder__tokens": None}, "[ladder] tokens: exactly one of tokens and tokens_per_parameter must be given; it is the budget of each rung"),
    ({"ladder__tokens_per_parameter": 20, "ladder__check_tokens": None, "ladder__target_tokens": None}, "[ladder] tokens: exactly one of tokens and tokens_per_parameter must be given; it is the budget of each rung"),
    ({**HORIZONS, **PER_PARAMETER}, "[ladder] tokens_per_parameter: needs models; of one model list the budgets, as in `tokens = [300_000, 600_000]`"),
    ({"ladder__tokens": [1, 2]}, "[ladder] tokens: must have one number for each of the 3 rungs, but has 2"),
    ({"ladder__trials": [1, 2]}, "[ladder] trials: must have one number for each of the 3 rungs, but has 2"),
    ({**HORIZONS, "ladder__tokens": [300_000], "ladder__trials": 8}, "[ladder] tokens: a ladder has at least 2 rungs, but got 1"),
    ({**HORIZONS, "ladder__check": "gpt-4x128"}, "[ladder] check: all rungs have the same model, so state check_tokens alone"),
    ({**HORIZONS, "ladder__target": "gpt-4x128"}, "[ladder] target: all rungs have the same model, so state target_tokens alone"),
    ({"ladder__check": None}, "[ladder] check_tokens: needs check, the model that is trained on so many tokens"),
    ({"ladder__target": None}, "[ladder] target_tokens: needs target, the model that is trained on so many tokens"),
    ({"ladder__check_tokens": None}, "[ladder] check_tokens: missing; tokens lists the rungs' budgets, so state that of the check too"),
    ({"ladder__target_tokens": None}, "[ladder] target_tokens: missing; tokens lists the rungs' budgets, so state that of the target too"),
    ({**PER_PARAMETER, "ladder__check_tokens": 800_000}, "[ladder] check_tokens: also tokens_per_parameter; remove one of them"),
    ({"ladder__models": ["gpt-2x64", "gpt-2x32", "gpt-3x96"]}, "[ladder] models: must differ and go from small to large, but got 2x64, 2x32, 3x96"),
    ({"ladder__models": ["gpt-2x64", "gpt-2x64", "gpt-3x96"], "ladder__tokens": [300_000, 300_000, 500_000]}, "[ladder] models: must differ and go from small to large, but got 2x64-300k, 2x64-300k, 3x96-500k"),
    ({"ladder__check": "gpt-2x64"}, "[ladder] check: must be larger than the largest rung, 3x96, but is 2x64"),
    ({"ladder__target": "gpt-2x64"}, "[ladder] target: must be larger than the largest rung, 3x96, but is 2x64"),
    # between [ladder] and the rest
    ({"trainer": None}, "[ladder] the file needs a table [trainer] too; it holds what all rungs share, such as context"),
    ({"trainer": 3}, "[ladder] the file needs a table [trainer] too; it holds what all rungs share, such as context"),
    ({"search": {}}, "[ladder] the file needs keys in [search]: a ladder fits how their best values change with size"),
    ({"search": {"clip_mode": {"choices": ["global", "none"]}}}, "[search] a ladder fits laws of numbers, but all keys are texts, or have a 0 among their choices"),
    ({"ladder__models": None, "ladder__check": None, "ladder__target": None}, "[ladder] models: missing, and so is [trainer] model; list models here, or state the one that all rungs have there"),
    ({"trainer__model": "gpt-2x64"}, "[ladder] models: also [trainer] model; the rungs' models are listed here, so remove that"),
    ({"trainer__tokens": 1000}, "[ladder] tokens: also [trainer] tokens; remove that"),
    ({"trainer__seconds": 5}, "[ladder] tokens: also [trainer] seconds; remove that"),
    ({"budget__trials": 5}, "[ladder] trials: also [budget] trials; remove one of them"),
    ({"ladder__batch": "step-law"}, "[ladder] batch: batch_tokens is also stated elsewhere; remove one of them"),
    ({"ladder__batch": 0.1, "hparams": {}, "search__batch_tokens": {"choices": [1024, 2048]}}, "[ladder] batch: batch_tokens is also stated elsewhere; remove one of them"),
    ({"objective__metric": "train/tok_per_sec"}, "[objective] metric: a ladder is about val/loss alone, but got train/tok_per_sec"),
    # the rest, of whatever shape
    ({"question": None}, 'question: missing; say what the study asks, as in `question = "Are GPT-3\'s betas right here?"`'),
    ({"budget": 3}, "[budget] must be a table, but got 3"),
    ({"confirm": 3}, "[confirm] must be a table, but got 3"),
    ({"trainer__context": "x", "ladder__batch": 0.1, "hparams": {}}, '[trainer] context: must be a whole number, but got "x"'),
    ({**HORIZONS, "trainer__model": 5}, '[trainer] model: must be a table, but got 5; or the name of a preset, such as "gpt-2x64"'),
    ({**HORIZONS, "trainer__model": {"layers": 1, "heads": 1}}, "[trainer] model.width: missing"),
    ({"hparams__lr": math.inf}, "[hparams] lr: must be in (0, inf), but got inf"),
    ({"hparams__batch_tokens": 100}, "[hparams] batch_tokens: must be a multiple of context, but 100 is not at context 128; the nearest that work: 128; it counts tokens, not sequences"),
    ({"search__learning_rate": {"low": 0.1, "high": 1.0}}, '[search] unknown key "learning_rate"; did you mean "lr"?'),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "sentence"), PROBLEMS, ids=[sentence[:70] for _, sentence in PROBLEMS])
def test_a_broken_rule_is_one_sentence(edits, sentence) -> None:
    assert sentence in problems(text(**edits))


def test_a_problem_that_all_parts_have_is_said_once() -> None:
    assert len(problems(text(hparams__eps=-1))) == 1


def test_a_name_must_leave_room_for_the_names_of_the_parts() -> None:
    long = "a" * 60
    assert problems(text(), long) == [
        f"{long}-check-decay-to-zero: the name of a part is too long for a study; give the ladder a shorter name"
    ]


def test_text_that_is_no_toml_is_refused() -> None:
    assert problems("[ladder") == [
        "not valid TOML: Expected ']' at the end of a table declaration (at end of document)"
    ]
    (problem,) = problems("x = " + "[" * 10_000)
    assert "deep" in problem


def test_a_study_is_no_ladder_and_a_ladder_is_no_study(tmp_path: Path) -> None:
    for name, content in (
        ("ladder", text()),
        ("study", study_text()),
        ("broken", "[ladder"),
        ("deep", "x = " + "[" * 10_000),
    ):
        (tmp_path / f"{name}.toml").write_text(content)
        assert is_ladder(str(tmp_path / f"{name}.toml")) is (name == "ladder")
    assert not is_ladder(str(tmp_path / "nothing.toml"))
    assert problems_of(text()) == [
        "[ladder]: this file is a ladder of several studies; `hpstudy run` and `hpstudy ladder` take it, and this "
        "command a part by its path, such as runs/NAME/NAME-2x64.toml"
    ]


def test_rungs_check_and_target_have_the_stated_models_budgets_and_trials(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text(text())
    found = load_ladder(str(path))
    assert (found.name, found.question, found.axes) == ("steps", "Does it hold?", ("N",))
    assert [(size.label, size.tokens, size.trials) for size in found.rungs] == [
        ("2x32", 200_000, 16), ("2x64", 300_000, 12), ("3x96", 500_000, 8),
    ]  # fmt: skip
    assert found.check is not None
    assert found.target is not None
    assert (found.check.label, found.check.tokens, found.check.trials) == ("4x128", 800_000, 16)
    assert (found.target.label, found.target.tokens, found.target.trials) == ("125m", 5_000_000, None)
    assert found.rungs[0].weights == 2 * (12 * 32**2 + 13 * 32) + 2 * 32  # blocks and the last norm, no embeddings
    assert found.coordinates(found.rungs[0]) == (math.log(found.rungs[0].weights),)


def test_check_and_target_may_be_left_out() -> None:
    parts = dict.fromkeys(("ladder__check", "ladder__check_tokens", "ladder__target", "ladder__target_tokens"))
    found = ladder(**parts)
    assert (found.check, found.target) == (None, None)


def test_tokens_per_parameter_is_the_budget_of_every_size() -> None:
    found = ladder(**PER_PARAMETER)
    assert found.check is not None
    assert found.target is not None
    assert all(size.tokens == 20 * size.weights for size in (*found.rungs, found.check, found.target))
    assert ladder(**{**PER_PARAMETER, "ladder__tokens_per_parameter": 0.1}).rungs[0].tokens == 2548  # of 2547.2


def test_one_model_with_growing_budgets_has_laws_in_tokens() -> None:
    found = ladder(**HORIZONS)
    assert found.axes == ("D",)
    assert [size.label for size in found.rungs] == ["200k", "300k", "500k"]
    assert found.check is not None
    assert found.target is not None
    assert (found.check.label, found.target.label) == ("800k", "5000k")
    assert found.coordinates(found.check) == (math.log(800_000),)
    assert [size.label for size in ladder(**HORIZONS, ladder__tokens=[200_000, 300_100, 500_000]).rungs][1] == "300100"


def test_models_with_several_budgets_have_laws_in_weights_and_tokens() -> None:
    models, tokens = ["gpt-2x32", "gpt-2x32", "gpt-2x64"], [200_000, 400_000, 400_000]
    found = ladder(ladder__models=models, ladder__tokens=tokens)
    assert found.axes == ("N", "D")
    assert [size.label for size in found.rungs] == ["2x32-200k", "2x32-400k", "2x64-400k"]
    assert found.coordinates(found.rungs[1]) == (math.log(found.rungs[1].weights), math.log(400_000))


@pytest.mark.parametrize(
    ("batch", "sequences"),
    [
        (0.01, [16, 32, 32]),  # 0.01 x 200,000 / 128 = 15.6, 23.4, 39.1: of logs to base 2 4.0, 4.6, 5.3
        (1e-6, [1, 1, 1]),
        ("step-law", [4, 8, 8]),  # 0.58 x 200,000^0.571 / 128 = 4.8, 6.1, 8.1
    ],
)
def test_the_batch_is_a_power_of_two_sequences_near_the_share_or_the_law(batch, sequences) -> None:
    found = ladder(ladder__batch=batch, hparams={})
    assert [size.batch_tokens for size in found.rungs] == [128 * count for count in sequences]
    study = found.study(found.rung_text(found.rungs[0]), "x-2x32")
    assert study.hparams["batch_tokens"] == 128 * sequences[0]


def test_a_rungs_file_is_the_study_at_its_size_that_tries_the_predicted_point_first() -> None:
    found = ladder(budget__parallel=2)
    content = found.rung_text(found.rungs[1], [POINT])
    assert content.startswith("# Rung 2x64 of the ladder x, written by hpstudy.\n")
    study = found.study(content, found.part("2x64"))
    assert (study.name, study.part_of, study.question) == ("x-2x64", "x", "Does it hold?")
    assert (study.spec.model, study.spec.tokens, study.trials) == (found.rungs[1].model, 300_000, 12)
    assert (study.budget.parallel, study.budget.first) == (2, (POINT,))
    assert found.study(found.rung_text(found.rungs[1]), "x-2x64").budget.first == ()


def test_the_checks_file_confirms_on_the_given_seeds_with_the_files_margin() -> None:
    found = ladder(confirm={"looks": [3, 5], "margin": 0.02})
    assert found.check is not None
    assert len(found.check_seeds) == 3
    study = found.study(found.check_text(found.check, (7, 8, 9)), found.part(CHECK))
    assert (study.seeds, study.confirm.margin, study.trials) == ((7, 8, 9), 0.02, 16)
    assert not tomllib.loads(found.check_text(found.check, (7, 8, 9)))["confirm"].get("looks")


def test_the_checks_seeds_are_the_first_that_the_file_states() -> None:
    assert ladder(confirm={"seeds": [5, 6, 7, 8, 9]}, ladder__check_seeds=4).check_seeds == (5, 6, 7, 8)


def test_a_sides_file_trains_the_given_values_and_searches_nothing() -> None:
    found = ladder(budget__parallel=2, budget__rules=["step-law"], baseline={"overrides": {"lr": 1e-3}})
    assert found.check is not None
    study = found.study(
        found.side_text(found.check, COPIED, {"lr": 0.01, "weight_decay": 0.3}, (7, 8, 9)), "x-check-copied"
    )
    assert (study.space, study.trials, study.seeds, study.part_of) == ({}, 1, (7, 8, 9), "x")
    assert (study.baseline.lr, study.baseline.weight_decay, study.baseline.batch_tokens) == (0.01, 0.3, 2048)
    assert (study.spec.model, study.spec.tokens) == (found.check.model, 800_000)


def test_the_targets_file_has_the_predicted_point_and_ranges_and_is_no_part() -> None:
    found = ladder()
    assert found.target is not None
    content = found.target_text(
        found.target, POINT, {"lr_over_rule": {"low": 0.3, "high": 0.9}}, ["Written by a test."]
    )
    study = found.study(content, "x-target")
    assert (study.part_of, study.budget.first, study.spec.tokens) == (None, (POINT,), 5_000_000)
    lr, decay = study.space["lr_over_rule"], study.space["weight_decay"]
    assert (lr.low, lr.high) == (0.3, 0.9)
    assert (decay.low, decay.high) == (1e-3, 1.0)
    assert study.trials == 16


def test_the_targets_range_keeps_the_scale_that_the_file_states() -> None:
    found = ladder(search={"weight_decay": {"low": 0, "high": 1, "scale": "linear"}})
    assert found.target is not None
    content = found.target_text(found.target, {"weight_decay": 0.2}, {"weight_decay": {"low": 0.0, "high": 0.5}}, [])
    assert found.study(content, "x-target").space["weight_decay"] == FloatRange(low=0.0, high=0.5, scale="linear")


def test_a_parts_file_is_written_once(tmp_path: Path) -> None:
    path = write_part(tmp_path, "x-2x32", "first")
    assert write_part(tmp_path, "x-2x32", "second") == path
    assert path.read_text() == "first"


# [budget] first

SPACE = {"beta2": {"low": 0.9, "high": 0.999}, "clip_mode": {"choices": ["global", "none"]}}
FIRST = [{"beta2": 0.95, "clip_mode": "none"}, {"beta2": 0.99, "clip_mode": "global"}]
WRONG_POINTS: list[tuple[Any, str]] = [
    (
        {"beta2": 0.95},
        'point 1: must state every searched key and no other (beta2, clip_mode), but got {"beta2": 0.95}',
    ),
    ({"beta2": 0.5, "clip_mode": "none"}, "point 1: beta2: must lie in [0.9, 0.999], its range, but got 0.5"),
    ({"beta2": "high", "clip_mode": "none"}, 'point 1: beta2: must be a number, but got "high"'),
    ({"beta2": True, "clip_mode": "none"}, "point 1: beta2: must be a number, but got true"),
    ({"beta2": 0.95, "clip_mode": "all"}, 'point 1: clip_mode: must be one of ["global", "none"], but got "all"'),
]


@pytest.mark.parametrize(("point", "sentence"), WRONG_POINTS)
def test_a_first_point_must_be_one_of_the_space(point, sentence) -> None:
    assert problems_of(study_text(search=SPACE, budget__first=[point])) == [f"[budget] first: {sentence}"]


def test_first_points_are_limited() -> None:
    (problem,) = problems_of(study_text(search=SPACE, budget__first=FIRST * MAX_FIRST))
    assert problem.startswith(f"[budget] first: must have at most {MAX_FIRST} items")


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp"])
def test_a_search_tries_the_baseline_then_the_first_points_once(sampler) -> None:
    study = parse(
        study_text(format=4, search=SPACE, budget__first=[FIRST[1], *FIRST], budget__sampler=sampler, budget__rules=[])
    )
    proposals = first_proposals(study)
    assert [proposals[number] for number in range(3)] == [study.baseline_proposal(), FIRST[1], FIRST[0]]


def test_published_rules_follow_the_first_points() -> None:
    study = parse(study_text(format=4, budget__first=[{"lr": 3e-3}], budget__rules=["step-law"]))
    assert list(rule_trials(study)) == [2]
    assert first_proposals(study)[1] == {"lr": 3e-3}


def test_a_point_of_a_whole_number_is_a_float_as_everywhere() -> None:
    study = parse(study_text(search={"weight_decay": {"low": 0.5, "high": 2.0}}, budget__first=[{"weight_decay": 1}]))
    assert repr(study.budget.first[0]["weight_decay"]) == "1.0"


def test_a_study_without_first_points_is_frozen_as_by_versions_that_knew_none() -> None:
    assert not [key for key in parse(study_text()).resolved() if key.endswith("first")]
    assert [key for key in parse(study_text(budget__first=[{"lr": 3e-3}])).resolved() if key.endswith("first")]
