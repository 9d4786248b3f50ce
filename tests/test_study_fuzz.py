"""Study files as nobody would write them: every valid one is a study, any other is told what is wrong, and where."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpstudy.errors import UserError
from hpstudy.hparams import RULES
from hpstudy.study import Study, changed_keys, load_study, parse_study
from hpstudy.study.file import StudyFile
from hpstudy.study.load import study_name

Tables = dict[str, Any]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    match value:
        case dict():
            return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case str():
            plain = (c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value)
            return '"' + "".join(plain) + '"'
        case bool():
            return str(value).lower()
        case int() if abs(value) >= 10**4000:
            return hex(value)
        case _:
            return repr(value)


def rendered(data: Tables) -> str:
    """A line for each top-level key."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in data.items())


# Valid studies


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Tables]:
    return st.fixed_dictionaries({}, optional=strategies)


COUNT = st.integers(1, 50)
SEED = st.integers(0, 2**32 - 1)
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
POWERS = st.sampled_from([1, 2, 4, 8, 16])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.floats(1e-6, 1e3),
    "beta1": st.floats(1e-3, 0.9999),
    "beta2": st.floats(1e-3, 0.9999),
    "eps": st.floats(1e-300, 1.0),
    "weight_decay": st.floats(1e-6, 1e6),
    "grad_clip": st.floats(1e-6, 1e6) | st.integers(1, 100),
    "clip_mode": st.sampled_from(["global", "per_tensor", "none"]),
    "warmup_fraction": st.floats(1e-6, 0.3),
    "decay_fraction": st.floats(0.4, 1.0),
    "min_lr_fraction": st.floats(1e-6, 1.0),
    "micro_batch": POWERS,
    "batch_ramp_fraction": st.floats(1e-6, 1.0),
    "batch_ramp_start": st.floats(1e-6, 1.0),
}
SAMPLERS = st.sampled_from(["tpe", "gp", "random", "qmc"])
PRUNERS = st.sampled_from(["none", "median", "successive_halving"])


def dimension(key: str) -> st.SearchStrategy[Tables]:
    """Choices of a key, or a range where it has one."""
    values = VALUES[key]
    choices = st.lists(values, min_size=2, max_size=4, unique=True).map(lambda found: {"choices": found})
    if key in ("clip_mode", "micro_batch"):
        return choices
    scales = st.sampled_from(["linear", "log", *(["log1m"] if key.startswith("beta") else [])])
    ends = st.tuples(values, values).filter(lambda pair: pair[0] != pair[1]).map(sorted)
    return choices | st.builds(
        lambda pair, more: {"low": pair[0], "high": pair[1], **more}, ends, optional(scale=scales)
    )


@st.composite
def studies(draw: st.DrawFn, *, tiny: bool = False) -> Tables:
    """Any study that a file may state; a tiny one also trains here."""
    context = draw(st.sampled_from([8, 16]) if tiny else st.sampled_from([16, 128, 1024]))
    batch = 16 * context * draw(st.integers(1, 4))  # 16 and all smaller micro-batches divide it
    shape = st.fixed_dictionaries({"layers": st.just(1), "heads": st.just(2), "width": st.sampled_from([8, 16])})
    budget = draw(st.just({"tokens": 4 * batch}) if tiny else budgets(batch))
    trainer = budget | {
        "model": draw(shape if tiny else shape | st.sampled_from(["gpt-2x64", "gpt-125m"])),
        "context": context,
        "val_tokens": 4 * context,
        "tokenizer": "bytes" if tiny else draw(st.sampled_from(["gpt2", "gpt2:256", "bytes"])),
    }
    trainer |= draw(optional(evals=st.integers(1, 4), seed=st.just(7), precision=st.sampled_from(["auto", "fp32"])))
    if not tiny:
        trainer |= draw(optional(corpus=st.just("asv") | WORDS.map(lambda path: f"text:{path}"), threads=COUNT))

    searched = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=4))
    search = {key: draw(dimension(key)) for key in searched}
    fixed = {key: values for key, values in VALUES.items() if key not in searched}
    overrides: Tables = {"warmup_fraction": 0.1} if "seconds" in budget and "warmup_fraction" in searched else {}
    hparams = {"batch_tokens": batch} | draw(optional(**fixed))

    parallel = draw(st.integers(1, 9))
    metric = draw(st.sampled_from(["val/loss", "train/tok_per_sec", ["train/tok_per_sec", "val/loss"]]))
    grid = bool(search) and all("choices" in found for found in search.values()) and draw(st.booleans())
    pruners = PRUNERS if metric == "val/loss" else st.just("none")
    more = {
        "trials": st.integers(1, 50) if search else st.just(1),
        "pack": st.integers(1, parallel) if metric == "val/loss" and "tokens" in budget else st.just(1),
        "smaller_micro_batch": st.booleans(),
        "hang_seconds": st.floats(1e-3, 1e9),
        "sampler": st.just("grid") if grid else SAMPLERS | optional(name=SAMPLERS, startup=COUNT, seed=SEED),
        "pruner": pruners | optional(name=pruners, startup=COUNT, reduction=st.integers(2, 9)),
    }
    seeds = st.lists(st.integers(8, 2**32 - 1), unique=True, max_size=6)
    confirm = optional(
        seeds=seeds,
        top=COUNT,
        margin=st.floats(0, 1),
        design=st.sampled_from(["paired", "independent"]),
        speedup=st.booleans(),
    )
    also = optional(also=st.just("tuned-lr")) if set(search) - {"lr"} else st.just({})
    answers = (
        st.just("faster") if metric == "train/tok_per_sec" else st.sampled_from(["better", ["equivalent", "worse"]])
    )
    whole = (draw(optional(yes=answers)) if search else {}) | {
        "question": draw(WORDS),
        "format": 1,
        "trainer": trainer,
        "hparams": hparams,
        "search": search,
        "baseline": {"name": "gpt3", "overrides": overrides, **draw(also)},
        "objective": {"metric": metric},
        "budget": {"parallel": parallel, **draw(optional(**more))},
    }
    return whole | draw(optional(confirm=confirm, wandb=optional(project=WORDS, entity=WORDS)))


def budgets(batch: int) -> st.SearchStrategy[Tables]:
    return st.integers(batch, 10**12).map(lambda tokens: {"tokens": tokens}) | st.floats(1e-3, 1e6).map(
        lambda seconds: {"seconds": seconds}
    )


@QUICK
@given(studies())
def test_every_valid_study_is_accepted_whole(data: Tables) -> None:
    study = parse(rendered(data))
    assert study.question == data["question"]
    assert list(study.space) == list(data["search"])
    assert study.baseline_hparams(study.spec.tokens).problems() == []
    assert changed_keys(study.resolved(), parse(rendered(data)).resolved()) == []


def parse(text: str) -> Study:
    return parse_study(text, name="x", path=Path("x.toml"))


def test_the_studies_tried_here_state_every_key() -> None:
    stated: set[str] = set()

    @settings(max_examples=120, database=None, derandomize=True, deadline=None)
    @given(studies())
    def collect(data: Tables) -> None:
        stated.update(".".join(place[:2]) for place, _ in places(data) if isinstance(place[-1], str))

    collect()
    for name, field in StudyFile.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        assert {f"{name}.{key}" for key in keys} - stated <= {"trainer.tokens", "objective.goal"}
    for key in RULES:
        assert {f"hparams.{key}", f"search.{key}"} & stated


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value in nested tables and arrays, and where it stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key), item
        yield from places(item, (*at, key))


# Damaged ones

HOSTILE = st.sampled_from(
    [
        *(0, -1, 2**53, 2**63, -(2**64), 10**400, 16**4000, 0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308),
        *("", "\0", "\x1b[2J", "é\u202e𝔘", "text:", "gpt2:9", "none", "tpe", "x" * 10_000, True, False, [], {}),
        *([[[[1]]]], {"a": {"b": {"c": [{}]}}}, {"choices": [[], {}, "a"]}, {"low": 2, "high": 1}, [0] * 5000),
    ]
)
NAMES = st.sampled_from(["", "lr", "name", "low", "choices", "a.b", "\n", "é", "\x1b[31m", "__class__"])


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Tables, tuple[str, ...]]:
    """A valid study with one thing changed, and the words of which a problem must name one."""
    data = deepcopy(draw(studies()))
    place, value = draw(st.sampled_from([found for found in places(data) if isinstance(found[0][-1], str)]))
    table: Any = data
    for part in place[:-1]:
        table = table[part]
    key, name = place[-1], draw(NAMES)
    match draw(st.sampled_from(["replace", "remove", "rename", "add", "swap", "nest"])):
        case "replace":
            table[key] = draw(HOSTILE)
        case "remove":
            del table[key]
        case "rename":
            table[name] = table.pop(key)
        case "add":
            table[name] = draw(HOSTILE)
        case "swap" if isinstance(value, dict) and "low" in value:
            value["low"], value["high"] = value["high"], value["low"]
        case "swap":
            table[key] = str(value)
        case "nest":
            for _ in range(draw(st.sampled_from([1, 2, 50]))):
                table[key] = [table[key]]
    return data, (place[0], key, name)


SECTIONS = "|".join(StudyFile.model_fields)
PLACED = re.compile(rf"\[({SECTIONS})\] |(question|yes|format): |unknown key |\[[^]]*\] (nested|a whole|.*: a whole)")


def told_of(path: Path, content: bytes) -> list[str]:
    """What a file of these bytes is told; empty when it is a study. Any error but a UserError is a failure."""
    path.write_bytes(content)
    try:
        load_study(str(path))
    except UserError as error:
        told = error.problems
    else:
        return []
    assert told
    assert all(problem.startswith(f"{path}: ") for problem in told)
    assert not re.search("[\0-\x1f\x7f-\x9f]", "".join(told))  # nothing that a terminal obeys
    return [problem.removeprefix(f"{path}: ") for problem in told]


@QUICK
@given(mutations())
def test_a_changed_study_is_valid_or_told_the_key(tmp_path: Path, mutation: tuple[Tables, tuple[str, ...]]) -> None:
    data, words = mutation
    told = told_of(tmp_path / "x.toml", rendered(data).encode())
    assert all(PLACED.match(problem) for problem in told), told
    assert not told or any(word in problem for problem in told for word in words), told


DAMAGE = st.one_of(
    st.tuples(st.just(b""), st.just(10**6)),  # cut short
    st.tuples(st.binary(max_size=9), st.integers(0, 20)),
    st.tuples(
        st.sampled_from([b"\n", b"]", b"=", b'"', b"\0", b"\xff", b"[[", b"1979-05-27", b"{{"]), st.integers(0, 3)
    ),
)


@QUICK
@given(studies(), st.floats(0, 1), DAMAGE)
def test_damaged_text_is_valid_or_told_the_line_or_the_key(
    tmp_path: Path, data: Tables, share: float, damage: tuple[bytes, int]
) -> None:
    text, (new, length) = rendered(data).encode(), damage
    at = int(share * len(text))
    told = told_of(tmp_path / "x.toml", text[:at] + new + text[at + length :])
    syntax = re.compile(r"not valid TOML: .*(line \d+|end of document|key|limit|overwrite)|must be UTF-8, but byte \d+")
    assert all(PLACED.match(problem) or syntax.match(problem) for problem in told), told


@QUICK
@given(st.binary(max_size=200))
def test_bytes_at_random_are_no_study(tmp_path: Path, content: bytes) -> None:
    assert told_of(tmp_path / "x.toml", content)


GRID = {key: {"choices": [0.1 + 0.001 * i for i in range(100)]} for key in ("beta1", "beta2", "eps")}
BOMBS = {
    "brackets": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{a = " * 50_000,
    "dotted key": "question" + ".a" * 2000 + " = 1",
    "nested seeds": "confirm = { seeds = " + "[" * 300 + "]" * 300 + "}",
    "hexadecimal": "format = 0x" + "f" * 100_000,
    "seeds": f"confirm = {{ seeds = {list(range(100_000))} }}",
    "choices": f"search = {{ micro_batch = {{ choices = {list(range(1, 100_000))} }} }}",
    "grid": f"search = {toml(GRID)}\nbudget = {{ sampler = 'grid' }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_made_to_exhaust_its_reader_is_refused_at_once(tmp_path: Path, bomb: str) -> None:
    began = time.process_time()
    told = told_of(tmp_path / "x.toml", BOMBS[bomb].encode())
    assert time.process_time() - began < 5  # some tenths of a second each
    assert max(map(len, told)) < 1000


# Names


@QUICK
@given(st.text(max_size=80) | st.lists(st.sampled_from(["..", "/", "a", ".toml", "\\", "~", " "])).map("".join))
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    try:
        study = study_name(name)
    except UserError:
        return
    runs = tmp_path / "runs"
    assert (runs / study).resolve().parent == runs.resolve()
    assert study.isascii()
    assert len(study) <= 64
