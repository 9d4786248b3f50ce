"""The reference of all keys of a study file and all metrics, generated from the schema and the glossary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hpstudy.hparams import COORDINATES, GPT3, RULES, raw_key
from hpstudy.records import GLOSSARY
from hpstudy.study import toml
from hpstudy.study.schema import FORMAT, TABLES, StudyFile, Table

TITLES = {
    "model": "[trainer] model, as a table",
    "range": "[search] KEY, a range",
    "choices": "[search] KEY, a list",
    "sampler": "[budget] sampler",
    "pruner": "[budget] pruner",
}
DERIVED_DEFAULTS = {
    "warmup_fraction": "GPT-3's 0.00125, at least 10 steps and 1%",
    "micro_batch": "largest divisor of the batch up to 16",
}
EXAMPLES: dict[str, dict[str, float]] = {  # of coordinates
    "lr_over_rule": {"low": 0.1, "high": 10},
    "beta1_halflife": {"low": 1e-3, "high": 0.1},
    "beta2_halflife": {"low": 1e-3, "high": 0.3},
    "weight_decay_timescale": {"low": 0.03, "high": 30},
    "batch_fraction": {"low": 1e-3, "high": 0.02},
}
COORDINATES_TITLE = "[search]: scale-free coordinates"
HEADER = ("key", "type", "unit", "default", "meaning", "example")
INTRO = """\
# Study files: every key

A study file states a question, what varies, what is fixed, and the budget. `hpstudy check NAME` reports every problem
of a file at once. `hpstudy reference` prints this page, from the code that reads the files.

The baseline has GPT-3's values, overlaid with `[hparams]` and then `[baseline] overrides`. A trial has GPT-3's values,
overlaid with `[hparams]` and then its proposal. Once a study has begun, its file may not change, except that
`[budget] trials` and `[confirm] seeds` may grow. A file with a table `[ladder]` is several such studies.
"""


def reference_markdown() -> str:
    """The whole reference as one Markdown page."""
    parts = [INTRO, "## Top level\n", _table(HEADER, _rows(StudyFile))]
    hparams = "## [hparams], [search] and [baseline] overrides: the hyperparameters\n"
    for name, table in TABLES.items():
        parts += [f"## {TITLES.get(name, f'[{name}]')}\n", f"{table.__doc__}\n", _table(HEADER, _rows(table))]
        if name == "model":
            parts += [
                hparams,
                f"{_HPARAMS}\n",
                _table((*HEADER[:4], "scale of a range", *HEADER[4:]), _hyperparameters()),
            ]
        if name == "model":
            header = ("key", "type", "unit", "in place of", "scale of a range", "meaning", "example")
            parts += [f"## {COORDINATES_TITLE}\n", f"{_COORDINATES}\n", _table(header, _coordinates())]
    parts += ["## Metrics\n", f"{_METRICS}\n", _table(("metric", "unit", "meaning"), _metrics())]
    return "\n".join(parts)


_HPARAMS = """\
Each key is fixed in `[hparams]`, or varies in `[search]`, or is GPT-3's. Whole numbers and `clip_mode` are searched as
a list, all others as a list or a range. A range without `scale` has the key's own scale below: `log1m` is the log of
1 - value, and `log` needs `low` above 0, so that a `weight_decay` from 0 must state `scale = "linear"`. `[hparams]
micro_batch = "auto"` measures the fastest size on the device."""
_COORDINATES = """\
In place of a hyperparameter `[search]` may vary one of these, so that one range suits models and runs of any size: give
one of each pair, and `[trainer] tokens`. Runs are trained and recorded with the hyperparameters that follow, and the
tables have both. Shares are of the run's own tokens, also of the shorter runs of `[confirm] speedup`. Conversions
round, so the baseline is never trial 0 of such a study."""
_METRICS = (
    "The names in `steps.jsonl`, of long runs also in `steps.parquet`, on W&B, and in the table `steps`. Steps without "
    "an evaluation lack its metrics."
)


def _rows(table: type[Table]) -> Iterator[tuple[str, ...]]:
    """One row per key of a table; tables within it have sections of their own."""
    properties: dict[str, Any] = table.model_json_schema()["properties"]
    for key, field in table.model_fields.items():
        if field.description is None:
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        newest = extra.get("newest", field.default)
        newest = newest.in_format(FORMAT) if isinstance(newest, Table) else newest
        default = "required" if field.is_required() else _code(_toml(newest)) or "not set"
        example = "" if extra["example"] is None else _code(f"{key} = {_toml(extra['example'])}")
        yield _code(key), _type(properties[key]), str(extra["unit"]), default, field.description, example


def _hyperparameters() -> Iterator[tuple[str, ...]]:
    for key, rule in RULES.items():
        value = getattr(GPT3, key)
        legal = _either(rule.choices)
        legal = legal or f"{'whole number' if rule.kind is int else 'number'} in {rule}"
        shown = value if isinstance(value, int | str) else float(f"{value:.4g}")
        default = DERIVED_DEFAULTS.get(key) or _code(_toml(shown))
        scale = rule.scale if rule.kind is float else ""
        yield _code(key), legal, rule.unit, default, _code(scale), rule.doc, _code(f"{key} = {_toml(shown)}")


def _coordinates() -> Iterator[tuple[str, ...]]:
    for key, rule in COORDINATES.items():
        example = _code(f"{key} = {_toml(EXAMPLES[key])}")
        yield _code(key), f"number in {rule}", rule.unit, _code(raw_key(key)), _code(rule.scale), rule.doc, example


def _metrics() -> Iterator[tuple[str, ...]]:
    for metric in GLOSSARY.values():
        yield _code(metric.name), metric.unit, metric.doc


def _type(schema: dict[str, Any]) -> str:
    """A key's type and range in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return _either(schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "table"
    if schema.get("type") == "array":
        items = _type(schema["items"]) if schema.get("items") else ""
        if items.startswith("`"):
            return f"{items}; or a list of them"
        return f"list of {items.replace('number', 'numbers', 1)}" if items else "list"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return names.get(str(schema.get("type")), "table") + _limits(schema)


def _limits(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    found = [f"{word} {_number(schema[name])}" for name, word in words.items() if name in schema]
    return f", {' and '.join(found)}" if found else ""


def _either(values: Sequence[object]) -> str:
    *others, last = [_code(json.dumps(value)) for value in values] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _toml(value: object) -> str:
    """A value as TOML spells it; a table by the values that are set."""
    if value is None:
        return ""
    if isinstance(value, Table):
        return f'"{value.model_dump()["name"]}"'
    return toml.value(value)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(header: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
