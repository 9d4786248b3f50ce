"""Study files made from a valid one by edits, what is wrong with them, and a check that a training is legal."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpstudy.errors import UserError
from hpstudy.hparams import RULES, HParams
from hpstudy.study import Study, parse_study

PLACE = Path("studies/x.toml")
BASE: dict[str, Any] = {
    "question": "Is it right?",
    "format": 1,
    "trainer": {"model": "gpt-2x64", "tokenizer": "gpt2:2048", "context": 128, "tokens": 600_000},
    "hparams": {"batch_tokens": 4096},
    "search": {"lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}},
}
LR = BASE["search"]["lr"]


def toml(value: Any) -> str:
    """A value as TOML spells it in one line."""
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
        case int() if abs(value) >= 10**4000:  # Python refuses to write so many decimal digits
            return hex(value)
        case _:
            return repr(value)


def rendered(tables: dict[str, Any]) -> str:
    """A whole file, with one line for each top-level key."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in tables.items())


def text(**edits: Any) -> str:
    """The file BASE with edits such as search__lr=value; None removes a key."""
    return edited(BASE, edits)


def edited(base: dict[str, Any], edits: dict[str, Any]) -> str:
    """A file of tables with edits such as search__lr=value; None removes a key."""
    tables = deepcopy(base)
    for place, value in edits.items():
        *parents, key = place.split("__")
        table = tables
        for name in parents:
            table = table.setdefault(name, {})
        table[key] = value
        if value is None:
            del table[key]
    return rendered(tables)


def parse(content: str) -> Study:
    """The study of a file with this content."""
    return parse_study(content, name="x", path=PLACE)


def problems_of(content: str) -> list[str]:
    """Every problem of a file with this content, without the path that each begins with. Empty if it is valid."""
    try:
        parse(content)
    except UserError as error:
        problems = error.problems
    else:
        return []
    assert problems
    assert all(problem.startswith(f"{PLACE}: ") for problem in problems)
    return [problem.removeprefix(f"{PLACE}: ") for problem in problems]


def illegal_values(hparams: HParams) -> list[str]:
    """What makes a training illegal: keys whose value breaks its rule, and a warm-up that ends after the decay."""
    found = [key for key, value in asdict(hparams).items() if RULES[key].problem(value)]
    if hparams.warmup_fraction > hparams.decay_fraction:
        found.append("warmup_fraction > decay_fraction")
    return found
