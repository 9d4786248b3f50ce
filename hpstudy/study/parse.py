"""A study file's text -> its tables, with pydantic's errors as sentences of place, rule, value and remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpstudy.errors import UserError, did_you_mean
from hpstudy.hparams import RULES, number_hint
from hpstudy.study.schema import MAX_INTEGER, TABLES, StudyFile, nearest, shown

MAX_CHARACTERS = 1_000_000
MAX_DOTS = 64  # of a key; the reader of TOML takes seconds for thousands
MAX_DEPTH = 16  # tables and arrays within one another; a study needs 4
TOO_DEEP = f"nested too deep: tables and arrays may be nested {MAX_DEPTH} deep at most"

Finding = tuple[str, str]
"""(what is wrong, as "section.key", and the sentence that says so)"""

_MISSING = {
    "question": '; say what the study asks, as in `question = "Are GPT-3\'s betas right here?"`',
    "search": "; a study of the baseline alone has an empty [search]",
    "trainer": "; it needs at least a model and tokens or seconds",
}


def read(text: str) -> tuple[StudyFile, list[Finding]]:
    """The file's tables, and a finding for each thing that breaks their shape.

    A key with a finding holds its default, or a stand-in if it has none, so that the rules between the other keys can
    still be checked. Raises UserError when the text is not TOML.
    """
    data = tables(text)
    if "ladder" in data:
        raise UserError(
            "[ladder]: this file is a ladder of several studies; `hpstudy run` and `hpstudy ladder` take it, and this "
            "command a part by its path, such as runs/NAME/NAME-2x64.toml"
        )
    try:
        return StudyFile.model_validate(data), []
    except ValidationError as error:
        findings = [
            (".".join(str(part) for part in found["loc"][:2]), _sentence(found))
            for found in _without_consequences(error.errors(include_url=False))
        ]
    wrong = {key for key, _ in findings}
    wrong |= {key.partition(".")[0] for key in wrong if not isinstance(data.get(key.partition(".")[0]), dict)}  # yes.0
    sound: dict[str, Any] = {
        name: {key: value for key, value in table.items() if f"{name}.{key}" not in wrong}
        if isinstance(table, dict)
        else table
        for name, table in data.items()
        if name not in wrong
    }
    trainer = {"model": "gpt-2x64", **sound.get("trainer", {})}
    stand_in = {"question": "?", "search": {}, **sound, "trainer": trainer}
    return StudyFile.model_validate(stand_in), findings


def tables(text: str) -> dict[str, Any]:
    """The tables of a study file or a ladder. Raises UserError if its text is not TOML, or none that it could hold."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"must have at most {MAX_CHARACTERS:,} characters, but has {len(text):,}; is it a study file?")
    if any(line.partition("=")[0].count(".") > MAX_DOTS for line in text.splitlines()):
        raise UserError(TOO_DEEP)
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise UserError(f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise UserError(TOO_DEEP) from error
    if excesses := list(_excesses(data, ())):
        raise UserError(excesses)
    return data


def sentences(error: ValidationError, *section: str) -> list[str]:
    """The errors of the file, or of one table of it, as sentences."""
    found = error.errors(include_url=False)
    return [_sentence({**each, "loc": (*section, *each["loc"])}) for each in found]


def _without_consequences(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leaves out what a dimension of [search] lacks if it states that in another tool's words."""
    unknown = {found["loc"][:2] for found in errors if found["type"] == "extra_forbidden"}
    renamed = {place for place in unknown if place[0] == "search"}
    return [found for found in errors if found["type"] != "missing" or found["loc"][:2] not in renamed]


def _excesses(value: object, keys: tuple[str, ...]) -> Iterator[str]:
    """What the TOML reader accepts and no later message could quote: huge numbers, deeply nested tables."""
    if len(keys) > MAX_DEPTH:
        yield f"{_place(keys[0], [key for key in keys[1:2] if key])}{TOO_DEEP}"
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield f"{_place(keys[0], [key for key in keys[1:] if key])}a whole number must fit in 64 bits"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _excesses(inner, (*keys, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _excesses(inner, (*keys, ""))


def _sentence(found: ErrorDetails) -> str:
    """One of pydantic's errors as place, rule, value and remedy."""
    loc, value, kind = found["loc"], found["input"], found["type"]
    section, *inner = [str(part) for part in loc if isinstance(part, str)]
    if section == "search" and len(inner) > 1:
        del inner[1]  # "range" or "choices", as which the dimension was read
    if kind == "extra_forbidden":
        known = tuple((TABLES[str(loc[-2])] if len(loc) > 1 else StudyFile).model_fields)
        word = str(loc[-1])
        own = section == "baseline" and word in RULES
        near = f"; write overrides = {{ {word} = ... }}" if own else nearest(word, known)
        near = near or f"; known are {', '.join(known)}"
        return f'{_place(section, inner[:-1]) if inner else ""}unknown key "{word}"{near}'
    place = _place(section, inner)
    if kind == "missing":
        return f"{place}missing{'' if inner else _MISSING.get(section, '')}"
    if kind == "value_error":
        return f"{place}{found['ctx']['error']}"
    if kind in ("model_type", "dict_type"):
        return f"{place}must be a table{_as_table(section, inner, value)}"
    rule = re.sub("^(Input|String|List|Tuple) should", "must", found["msg"])
    for theirs, ours in (
        ("a valid integer", "a whole number"),
        ("valid tuple", "valid list"),
        (" after validation", ""),
    ):
        rule = rule.replace(theirs, ours)
    remedy = ""
    if kind in ("int_type", "float_type"):
        remedy = number_hint(value, whole=kind == "int_type")
    elif kind in ("list_type", "tuple_type"):
        remedy = _example(section, inner)
    if kind == "literal_error" and isinstance(value, str):
        remedy = did_you_mean(value, re.findall("'([^']+)'", found["ctx"]["expected"]))
    return f"{place}{rule}, but got {shown(value)}{remedy}"


def _as_table(section: str, inner: list[str], value: object) -> str:
    """The rest of a sentence about a value that must be a table: an example, the value, the remedy."""
    got = f"but got {shown(value)}"
    if section == "search" and inner:
        fixed = "a fixed value goes to [hparams]"
        remedy = f"write {{ choices = {shown(value)} }}" if isinstance(value, list) else fixed
        return f", as in {{ low = 1e-4, high = 1e-2 }} or {{ choices = [1, 2] }}, {got}; {remedy}"
    if inner == ["model"]:
        return f', {got}; or the name of a preset, such as "gpt-2x64"'
    return f", {got}"


def _example(section: str, inner: list[str]) -> str:
    """`; as in `seeds = [101, 102]`` for a key of the file, from its example in the reference."""
    table = TABLES.get("choices" if section == "search" else section, StudyFile)
    key = inner[-1] if inner else section
    extra = table.model_fields[key].json_schema_extra if key in table.model_fields else None
    return f"; as in `{key} = {shown(extra['example'])}`" if isinstance(extra, dict) else ""


def _place(section: str, inner: list[str]) -> str:
    """`[section] key: `, the beginning of every problem of the file."""
    if section in ("question", "yes", "format"):
        return f"{section}: "
    return f"[{section}] {'.'.join(inner)}: " if inner else f"[{section}] "
