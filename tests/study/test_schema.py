"""The tables and keys of a study file: every value of a wrong type or beyond a limit gets one full sentence."""

# ruff: noqa: E501  (the table quotes each sentence whole)

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpstudy.errors import UserError
from hpstudy.hparams import RULES
from hpstudy.study.schema import StudyFile
from tests.helpers.study_files import parse, problems_of, text

PATHS = {
    "my.txt": '"text:my.txt"',
    "~/books": '"text:~/books"',
    "data/docs.jsonl": '"text:data/docs.jsonl"',
    "web.parquet": '"text:web.parquet"',
    "data/*.txt": '"text:data", the whole folder',
    "data/*.npy": '"shards:data/*.npy"',
    "train.bin": '"shards:train.bin", or "raw:train.bin" if it has no header',
}
PROBLEMS: list[tuple[dict[str, Any], str]] = [
    # keys
    ({"trainer__contxt": 1}, '[trainer] unknown key "contxt"; did you mean "context"?'),
    ({"budget__sampler": {"name": "tpe", "sed": 1}}, '[budget] sampler: unknown key "sed"; did you mean "seed"?'),
    ({"search__lr__lo": 1}, '[search] lr: unknown key "lo"; did you mean "low"?'),
    ({"serch": {}}, 'unknown key "serch"; did you mean "search"?'),
    ({"baseline__lr": 1e-3}, '[baseline] unknown key "lr"; write overrides = { lr = ... }'),
    ({"trainer__device": "cuda"}, '[trainer] unknown key "device"; the device is a flag, as in `hpstudy run NAME --device cuda`'),
    ({"wandb__x": 1}, '[wandb] unknown key "x"; known are project, entity'),
    ({"trainer__model": None}, "[trainer] model: missing"),
    ({"search__lr": {"low": 1e-4}}, "[search] lr.high: missing"),
    ({"search": None}, "[search] missing; a study of the baseline alone has an empty [search]"),
    # types
    ({"format": 5}, "format: must be 1, 2, 3 or 4, but got 5"),
    ({"question": ""}, 'question: must have at least 1 character, but got ""'),
    ({"question": 3}, "question: must be a valid string, but got 3"),
    ({"budget": 3}, "[budget] must be a table, but got 3"),
    ({"search__lr": 3}, "[search] lr: must be a table, as in { low = 1e-4, high = 1e-2 } or { choices = [1, 2] }, but got 3; a fixed value goes to [hparams]"),
    ({"search__lr": [1e-4, 1e-2]}, "[search] lr: must be a table, as in { low = 1e-4, high = 1e-2 } or { choices = [1, 2] }, but got [0.0001, 0.01]; write { choices = [0.0001, 0.01] }"),
    ({"search__lr": {"choices": 1e-3}}, "[search] lr.choices: must be a valid list, but got 0.001; as in `choices = [1024, 4096]`"),
    ({"search__lr__low": "1e-4"}, '[search] lr.low: must be a valid number, but got "1e-4"; write 0.0001'),
    ({"trainer__model": 64}, '[trainer] model: must be a table, but got 64; or the name of a preset, such as "gpt-2x64"'),
    ({"trainer__tokens": "1M"}, '[trainer] tokens: must be a whole number, but got "1M"; write 1_000_000'),
    ({"trainer__val_tokens": "64k"}, '[trainer] val_tokens: must be a whole number, but got "64k"; write 64_000'),
    ({"trainer__tokens": "a lot"}, '[trainer] tokens: must be a whole number, but got "a lot"'),
    ({"trainer__tokens": 1e9}, "[trainer] tokens: must be a whole number, but got 1000000000.0; write 1_000_000_000"),
    ({"trainer__evals": "10"}, '[trainer] evals: must be a whole number, but got "10"; write 10'),
    ({"trainer__evals": True}, "[trainer] evals: must be a whole number, but got true"),
    ({"search__lr__low": math.nan}, "[search] lr.low: must be a finite number, but got NaN"),
    ({"budget__sampler": "tpee"}, "[budget] sampler.name: must be 'tpe', 'gp', 'random', 'qmc' or 'grid', but got \"tpee\"; did you mean \"tpe\"?"),
    ({"budget__pack": "fast"}, '[budget] pack: must be a whole number of at least 1, or "auto", but got "fast"'),
    ({"budget__pack": 0}, '[budget] pack: must be a whole number of at least 1, or "auto", but got 0'),
    ({"budget__rules": "step-lwa"}, '[budget] rules: unknown rule "step-lwa"; did you mean "step-law"?; known are combined, step-law, half-life, power-lines, decay-to-zero, sqrt-batch, batch-0.3'),
    ({"budget__rules": ["half-life", 3]}, "[budget] rules: unknown rule 3; known are combined, step-law, half-life, power-lines, decay-to-zero, sqrt-batch, batch-0.3"),
    ({"budget__rules": True}, '[budget] rules: must be "auto" or a list of rules, but got true; as in `rules = ["step-law"]`'),
    ({"yes": "good"}, "yes: must be 'better', 'worse', 'equivalent', 'faster' or 'slower', but got \"good\""),
    ({"objective__metric": "val/los"}, "[objective] metric: must be 'val/loss' or 'train/tok_per_sec', but got \"val/los\"; did you mean \"val/loss\"?"),
    # limits
    ({"budget__parallel": 0}, "[budget] parallel: must be greater than or equal to 1, but got 0"),
    ({"budget__trials": 0}, "[budget] trials: must be greater than or equal to 1, but got 0"),
    ({"budget__pruner": {"name": "median", "from_fraction": 1.0}}, "[budget] pruner.from_fraction: must be less than 1, but got 1.0"),
    ({"budget__pruner": {"reduction": 1}}, "[budget] pruner.reduction: must be greater than or equal to 2, but got 1"),
    ({"confirm__looks": [2, 5]}, "[confirm] looks: must be greater than or equal to 3, but got 2"),
    ({"confirm__looks": []}, "[confirm] looks: must have at least 1 item, not 0, but got []"),
    ({"confirm__looks": 3}, "[confirm] looks: must be a valid list, but got 3; as in `looks = [3, 5, 8, 12, 20]`"),
    ({"confirm__seeds": 5}, "[confirm] seeds: must be a valid list, but got 5; as in `seeds = [101, 102, 103, 104, 105]`"),
    ({"yes": True}, 'yes: must be a valid list, but got true; as in `yes = "better"`'),
    ({"confirm__seeds": [-1, 2]}, "[confirm] seeds: must be greater than or equal to 0, but got -1"),
    ({"trainer__model": "gpt-125"}, '[trainer] model: unknown preset "gpt-125"; did you mean "gpt-125m"?; known are gpt-2x64, gpt-4x128, gpt-6x256, gpt-8x512, gpt-125m, gpt-350m, gpt-2x32, gpt-3x96, gpt-5x160, gpt-6x192'),
    ({"trainer__corpus": "fineweb"}, '[trainer] corpus: unknown corpus "fineweb"; did you mean "fineweb-edu"?; known are "asv", "fineweb-edu", "text:PATH", "shards:GLOB" and "raw:GLOB"'),
    *(({"trainer__corpus": path}, f'[trainer] corpus: unknown corpus "{path}"; did you mean {meant}?; known are "asv", "fineweb-edu", "text:PATH", "shards:GLOB" and "raw:GLOB"') for path, meant in PATHS.items()),
    ({"trainer__corpus": "txt:my.txt"}, '[trainer] corpus: unknown corpus "txt:my.txt"; did you mean "text:"?; known are "asv", "fineweb-edu", "text:PATH", "shards:GLOB" and "raw:GLOB"'),
    ({"trainer__corpus": "text:"}, '[trainer] corpus: "text:" must be followed by a path, but got "text:"'),
    ({"trainer__tokenizer": "gpt2:255"}, '[trainer] tokenizer: "gpt2:N" needs a whole number N with 256 <= N <= 50256, but got "gpt2:255"'),
    ({"trainer__tokenizer": "gtp2"}, '[trainer] tokenizer: unknown tokenizer "gtp2"; did you mean "gpt2"?; known are "gpt2", "gpt2:N" and "bytes"'),
    ({"trainer__seconds": 2e9}, "[trainer] seconds: must be less than or equal to 1000000000, but got 2000000000.0"),
    ({"trainer__evals": 2**63}, "[trainer] evals: a whole number must fit in 64 bits"),
    ({"question": "\x1b[2J"}, 'question: must be one line without control characters, but got "\\u001b[2J"'),
    ({"confirm__seeds": [1] * 1001}, f"[confirm] seeds: must have at most 1000 items, not 1001, but got [{'1, ' * 66}1..."),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "sentence"), PROBLEMS, ids=[sentence[:60] for _, sentence in PROBLEMS])
def test_a_mistake_gives_one_sentence_with_place_rule_value_and_remedy(edits: dict[str, Any], sentence: str) -> None:
    assert problems_of(text(**edits)) == [sentence]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('question = "a"\nformat = = 1', "line 2, column 10"),
        ("a = 1\nb = [1,\n", "end of document"),
        ("[search]\n[search]", "line 2"),
    ],
)
def test_a_syntax_error_names_its_line_and_column(content: str, place: str) -> None:
    (problem,) = problems_of(content)
    assert problem.startswith("not valid TOML: ")
    assert place in problem


@given(st.text(alphabet="qx[]={}\"'\n#1.", max_size=40))
def test_text_that_is_no_study_gives_a_user_error(content: str) -> None:
    with pytest.raises(UserError):
        parse(content)


ANYTHING = st.recursive(
    st.just("x")
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_subnormal=False)
    | st.text(alphabet="abc:/12 ", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "choices", "name"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = [  # of every table; [hparams] and [search] have the hyperparameters
    (section, key)
    for section, field in StudyFile.model_fields.items()
    if section not in ("question", "yes", "format")
    for key in getattr(field.annotation, "model_fields", RULES)
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KEYS), ANYTHING)
def test_any_value_of_a_key_is_valid_or_gives_a_problem_that_names_the_key(place: tuple[str, str], value: Any) -> None:
    section, key = place
    problems = problems_of(text(**{f"{section}__{key}": value}))
    assert all(problem.startswith("[") for problem in problems)
    # further problems may follow from it, for example a batch that the new micro-batch does not divide
    assert not problems or any(key in problem for problem in problems)
