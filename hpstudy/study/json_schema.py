"""The JSON schema of a study file, with which editors complete keys, show their meaning and mark mistakes.

It knows every key, type and limit. Rules between keys are for `hpstudy check`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from hpstudy.hparams import COORDINATES, GPT3, RULES, SEARCHABLE, Rule, raw_key
from hpstudy.spec import MODELS
from hpstudy.study.schema import CORPUS_KINDS, MAX_LISTED, LadderTable, StudyFile
from hpstudy.study.study import AUTO

DRAFT = "http://json-schema.org/draft-07/schema#"  # which editors' TOML plugins read
CORPUS = rf"^(asv|fineweb-edu|({'|'.join(CORPUS_KINDS)}):.+)$"
TOKENIZER = "^(gpt2|bytes|gpt2:[0-9]+)$"


def study_schema() -> dict[str, Any]:
    """The schema of a study file as a JSON value."""
    schema: dict[str, Any] = _for_editors(StudyFile.model_json_schema())
    ladder = _for_editors(LadderTable.model_json_schema())
    tables = schema["$defs"] | ladder.pop("$defs")
    schema |= {"$defs": tables, **_ladder(ladder)}
    tables["TrainerTable"]["required"].remove("model")  # a ladder lists models
    tables["LadderTable"] = ladder
    schema["properties"]["ladder"] = {"$ref": "#/$defs/LadderTable"}
    trainer, budget, search = (tables[name]["properties"] for name in ("TrainerTable", "Budget", "RangeTable"))
    trainer["model"] = _or_name(trainer["model"], list(MODELS))
    trainer["corpus"] |= {"pattern": CORPUS}
    trainer["tokenizer"] |= {"pattern": TOKENIZER}
    budget["pack"] = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]}
    for key, table in (("sampler", "Sampler"), ("pruner", "Pruner")):
        budget[key] = _or_name(budget[key], tables[table]["properties"]["name"]["enum"])

    values = {key: {**_value(rule), "description": _doc(key)} for key, rule in RULES.items()}
    tables["BaselineTable"]["properties"]["overrides"] |= {"properties": values, "additionalProperties": False}
    micro_batch = {"anyOf": [_value(RULES["micro_batch"]), {"const": AUTO}], "description": _doc("micro_batch")}
    schema["properties"]["hparams"] = {
        "description": "values for baseline and trials alike; the rest has GPT-3's",
        **_table({**values, "micro_batch": micro_batch}),
    }
    schema["properties"]["search"] = {
        "description": "what varies",
        **_table({key: _dimension(key, rule, search["scale"]) for key, rule in SEARCHABLE.items()}),
    }
    return {"$schema": DRAFT, "title": "hpstudy study file", **schema}


def _ladder(ladder: dict[str, Any]) -> dict[str, Any]:
    """Lets models of [ladder] be named, and demands [trainer] model of files without it."""
    models, names = ladder["properties"]["models"], {"enum": list(MODELS)}
    models["items"] = {"anyOf": [names, models["items"]]}
    for part in ("check", "target"):
        ladder["properties"][part] = _or_name(ladder["properties"][part], list(MODELS))
    alone = {"properties": {"trainer": {"required": ["model"]}}}
    return {"if": {"required": ["ladder"]}, "else": alone}


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


def _for_editors(schema: Any) -> Any:
    """pydantic's schema without null, which TOML has not, and with the short forms that the file may have."""
    if isinstance(schema, list):
        return [_for_editors(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema:
        properties = {key: _for_editors(part) for key, part in schema["properties"].items()}
        rest = {key: part for key, part in schema.items() if key not in ("properties", "title")}
        defs = {"$defs": {key: _for_editors(part) for key, part in rest.pop("$defs", {}).items()}}
        return {**rest, "properties": properties, **(defs if defs["$defs"] else {})}
    found = {
        key: _for_editors(part) for key, part in schema.items() if key not in ("title", "default", "newest", "unit")
    }
    if "example" in found:
        found["examples"] = [found.pop("example")]
    if schema.get("unit"):
        found["description"] += f" ({schema['unit']})"
    if types := [part for part in found.pop("anyOf", []) if part != {"type": "null"}]:
        found |= types[0] if len(types) == 1 else {"anyOf": types}
    if found.get("type") == "array" and "enum" in found.get("items", {}):  # one of them needs no brackets
        listed = {key: found.pop(key) for key in ("type", "items", "minItems") if key in found}
        found["anyOf"] = [listed["items"], listed]
    if "$ref" in found and len(found) > 1:  # what stands beside a $ref is not read
        found["allOf"] = [{"$ref": found.pop("$ref")}]
    return found


def _or_name(table: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The schema of a table that may also be stated by one of these names."""
    rest = {key: part for key, part in table.items() if key != "allOf"}
    return {**rest, "anyOf": [{"enum": names}, *table["allOf"]]}


def _table(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _doc(key: str) -> str:
    """The meaning of a key of [search], its unit, and GPT-3's value or the key that it stands for."""
    rule = SEARCHABLE[key]
    unit = f" ({rule.unit})" if rule.unit else ""
    if key in COORDINATES:
        return f"{rule.doc}{unit}; stands for {raw_key(key)}"
    value = getattr(GPT3, key)
    return f"{rule.doc}{unit}; GPT-3: {value if isinstance(value, str) else f'{value:.4g}'}"


def _value(rule: Rule) -> dict[str, Any]:
    """The schema of a hyperparameter's value."""
    if rule.kind is str:
        return {"enum": list(rule.choices)}
    low = "exclusiveMinimum" if rule.low_open else "minimum"
    high = "exclusiveMaximum" if rule.high_open else "maximum"
    most = {high: rule.high} if rule.high <= sys.float_info.max else {}
    return {"type": "integer" if rule.kind is int else "number", low: rule.low, **most}


def _dimension(key: str, rule: Rule, scale: dict[str, Any]) -> dict[str, Any]:
    """The schema of a searched hyperparameter: a list of values, and a range if the values are continuous."""
    listed = {"type": "array", "items": _value(rule), "minItems": 2, "maxItems": MAX_LISTED, "uniqueItems": True}
    choices = {**_table({"choices": listed}), "required": ["choices"]}
    if rule.kind is not float:
        return {"description": _doc(key), **choices}
    scales = {**scale, "enum": [name for name in scale["enum"] if name != "log1m" or rule.scale == name]}
    ends = {"low": _value(rule), "high": _value(rule), "scale": {**scales, "default": rule.scale}}
    return {"description": _doc(key), "anyOf": [{**_table(ends), "required": ["low", "high"]}, choices]}
