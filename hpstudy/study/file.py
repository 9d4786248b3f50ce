"""The study file as TOML spells it: its tables, keys, types and limits, and what pydantic finds in hpstudy's words."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)
from pydantic_core import ErrorDetails

from hpstudy.errors import CONTROLS, UserError, did_you_mean
from hpstudy.spec import PRESETS, PrecisionChoice, vocab_size

MetricName = Literal["val/loss", "train/tok_per_sec"]
Direction = Literal["minimize", "maximize"]
Scale = Literal["linear", "log", "log1m"]
SamplerName = Literal["tpe", "gp", "random", "qmc", "grid"]
PrunerName = Literal["none", "median", "successive_halving"]
Design = Literal["paired", "independent"]
Opponent = Literal["tuned-lr"]
Yes = Literal["better", "worse", "equivalent", "faster", "slower"]

MAX_DEPTH = 16  # tables and arrays within one another; what a study needs is 4
TOO_DEEP = f"nested too deep: tables and arrays may lie at most {MAX_DEPTH} deep"
MAX_INTEGER = 2**63 - 1  # TOML's own
MAX_LISTED = 1000  # choices of a key, or seeds
MAX_SECONDS = 1e9
MAX_SHOWN = 200  # characters of a value in an error message

OTHER_NAMES = {  # what other tools call our keys, for "did you mean"
    "learning_rate": "lr",
    "max_lr": "lr",
    "min_lr": "min_lr_fraction",
    "epsilon": "eps",
    "wd": "weight_decay",
    "clip": "grad_clip",
    "max_grad_norm": "grad_clip",
    "batch_size": "batch_tokens",
    "warmup": "warmup_fraction",
    "warmup_steps": "warmup_fraction",
    "block_size": "context",
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "n_trials": "trials",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "lr"?` for a word of the file, also when it is another tool's name for a key."""
    return did_you_mean(OTHER_NAMES.get(word, word), known)


def shown(value: object) -> str:
    """A value as TOML spells it, near enough for an error message; cut when it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _preset(model: object) -> object:
    """A preset's name as the table it stands for; anything else as it is."""
    if not isinstance(model, str):
        return model
    if model not in PRESETS:
        raise ValueError(f'unknown preset "{model}"{nearest(model, PRESETS)}; known are {", ".join(PRESETS)}')
    return asdict(PRESETS[model])


def _one_line(text: str) -> str:
    """A text that a terminal only shows."""
    if CONTROLS.search(text):
        raise ValueError(f"must be one line without control characters, but got {shown(text)}")
    return text


def _corpus(name: str) -> str:
    """A corpus name of one of the four forms; whether it is there is the corpus module's question."""
    kind, colon, rest = name.partition(":")
    if name in ("asv", "fineweb-edu") or (kind in ("text", "shards") and rest):
        return name
    if kind in ("text", "shards"):
        raise ValueError(f'"{kind}:" must be followed by a {"path" if kind == "text" else "glob"}, but got "{name}"')
    near = did_you_mean(kind + colon, ("asv", "fineweb-edu", "text:", "shards:"))
    raise ValueError(f'unknown corpus "{name}"{near}; known are "asv", "fineweb-edu", "text:PATH" and "shards:GLOB"')


def _tokenizer(name: str) -> str:
    """A tokenizer's name that has a vocabulary size."""
    try:
        vocab_size(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


def _named(value: object) -> object:
    """`"tpe"` as short for `{ name = "tpe" }`."""
    return {"name": value} if isinstance(value, str) else value


def _pack(value: object) -> object:
    """A number of trials, or "auto"."""
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f'must be a whole number of at least 1, or "auto", but got {shown(value)}')


def _listed(value: object) -> object:
    """`"val/loss"` as short for `["val/loss"]`."""
    return [value] if isinstance(value, str) else value


def _dimension_kind(value: object) -> str:
    return "choices" if isinstance(value, dict) and "choices" in value else "range"


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's generators take


class Table(BaseModel):
    """A TOML table: no unknown keys, no conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BaselineTable(Table):
    name: Literal["gpt3"] = "gpt3"
    also: Opponent | None = None
    overrides: dict[str, Any] = {}  # checked key by key against hparams.RULES


class ModelTable(Table):
    layers: Count
    heads: Count
    width: Count


class TrainerTable(Table):
    model: Annotated[ModelTable, BeforeValidator(_preset)]
    corpus: Annotated[Text, AfterValidator(_corpus)] = "asv"
    tokenizer: Annotated[str, AfterValidator(_tokenizer)] = "gpt2"
    context: Count = 1024
    tokens: Count | None = None
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    evals: Count = 20
    val_tokens: Count = 2**16
    seed: Seed = 0
    threads: Count = 1
    precision: PrecisionChoice = "auto"


class RangeTable(Table):
    low: float
    high: float
    scale: Scale = "linear"


class ChoicesTable(Table):
    choices: Annotated[list[Any], Field(max_length=MAX_LISTED)]  # checked value by value against hparams.RULES


DimensionTable = Annotated[
    Annotated[RangeTable, Tag("range")] | Annotated[ChoicesTable, Tag("choices")], Discriminator(_dimension_kind)
]


class ObjectiveTable(Table):
    metric: Annotated[list[MetricName], BeforeValidator(_listed), Field(min_length=1, max_length=2)] = ["val/loss"]
    goal: Annotated[list[Direction], BeforeValidator(_listed)] | None = None  # None: the metric's own


class SamplerTable(Table):
    name: SamplerName = "tpe"
    startup: Count = 10
    seed: Seed = 0


class PrunerTable(Table):
    name: PrunerName = "none"
    startup: Annotated[int, Field(ge=0)] = 5
    from_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3  # earlier rungs misjudge high learning rates
    reduction: Annotated[int, Field(ge=2)] = 3


class BudgetTable(Table):
    trials: Count | None = None  # None: 16, a grid's size, or 1 where nothing is searched
    parallel: Count = 4
    pack: Annotated[int | Literal["auto"], BeforeValidator(_pack)] = 1
    sampler: Annotated[SamplerTable, BeforeValidator(_named)] = SamplerTable()
    pruner: Annotated[PrunerTable, BeforeValidator(_named)] = PrunerTable()
    smaller_micro_batch: bool = True
    hang_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None  # None: from the steps' own pace


class ConfirmTable(Table):
    seeds: Annotated[list[Seed], Field(max_length=MAX_LISTED)] = [101, 102, 103, 104, 105]
    top: Count = 1
    margin: Annotated[float, Field(ge=0)] = 0.01
    design: Design = "paired"
    speedup: bool = False


class WandbTable(Table):
    project: Text = "hpstudy"
    entity: Text | None = None


class StudyFile(Table):
    question: Text
    yes: Annotated[list[Yes], BeforeValidator(_listed), Field(max_length=2)] = []
    format: Literal[1]
    baseline: BaselineTable = BaselineTable()
    trainer: TrainerTable
    hparams: dict[str, Any] = {}  # checked key by key against hparams.RULES
    search: dict[str, DimensionTable]
    objective: ObjectiveTable = ObjectiveTable()
    budget: BudgetTable = BudgetTable()
    confirm: ConfirmTable = ConfirmTable()
    wandb: WandbTable = WandbTable()


_TABLES: dict[str, type[Table]] = {  # by the last part of their place, which is unique
    "baseline": BaselineTable,
    "trainer": TrainerTable,
    "model": ModelTable,
    "range": RangeTable,
    "choices": ChoicesTable,
    "objective": ObjectiveTable,
    "budget": BudgetTable,
    "sampler": SamplerTable,
    "pruner": PrunerTable,
    "confirm": ConfirmTable,
    "wandb": WandbTable,
}
_MISSING = {
    "question": '; say what the study asks, as in `question = "Are GPT-3\'s betas right here?"`',
    "format": "; add `format = 1`",
    "search": "; a study of the baseline alone has an empty [search]",
    "trainer": "; it needs at least a model and tokens or seconds",
}


Finding = tuple[str, str]
"""(what is wrong, as "section.key", and the sentence that says so)"""


def read(text: str) -> tuple[StudyFile, list[Finding]]:
    """The file's tables, and a finding for each thing that breaks their shape.

    A key that has a finding holds its default, or a stand-in where it has none, so that the rules between the other
    keys can still be judged. Raises UserError when the text is no TOML.
    """
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise UserError(f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise UserError(TOO_DEEP) from error
    if excesses := list(_excesses(data, ())):
        raise UserError(excesses)
    try:
        return StudyFile.model_validate(data), []
    except ValidationError as error:
        findings = [
            (".".join(str(part) for part in found["loc"][:2]), _sentence(found))
            for found in error.errors(include_url=False)
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
    stand_in = {"question": "?", "format": 1, "search": {}, **sound, "trainer": trainer}
    return StudyFile.model_validate(stand_in), findings


def _excesses(value: object, keys: tuple[str, ...]) -> Iterator[str]:
    """What TOML's reader lets through and no later message could quote: endless numbers, bottomless tables."""
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
    """One of pydantic's findings as place, rule, value and remedy."""
    loc, value, kind = found["loc"], found["input"], found["type"]
    section, *inner = [str(part) for part in loc if isinstance(part, str)]
    if section == "search" and len(inner) > 1:
        del inner[1]  # "range" or "choices", as which the dimension was read
    if kind == "extra_forbidden":
        known = tuple((_TABLES[str(loc[-2])] if len(loc) > 1 else StudyFile).model_fields)
        word = str(loc[-1])
        near = nearest(word, known) or f"; known are {', '.join(known)}"
        return f'{_place(section, inner[:-1]) if inner else ""}unknown key "{word}"{near}'
    place = _place(section, inner)
    if kind == "missing":
        return f"{place}missing{'' if inner else _MISSING.get(section, '')}"
    if kind == "value_error":
        return f"{place}{found['ctx']['error']}"
    if kind in ("model_type", "dict_type"):
        example = ", as in { low = 1e-4, high = 1e-2 } or { choices = [1, 2] }" if section == "search" else ""
        return f"{place}must be a table{example}, but got {shown(value)}"
    rule = re.sub("^(Input|String|List) should", "must", found["msg"]).replace("a valid integer", "a whole number")
    remedy = ""
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        remedy = f"; write {int(value):_}"
    if kind == "literal_error" and isinstance(value, str):
        remedy = did_you_mean(value, re.findall("'([^']+)'", found["ctx"]["expected"]))
    return f"{place}{rule}, but got {shown(value)}{remedy}"


def _place(section: str, inner: list[str]) -> str:
    """`[section] key: `, the way every problem of the file begins."""
    if section in ("question", "yes", "format"):
        return f"{section}: "
    return f"[{section}] {'.'.join(inner)}: " if inner else f"[{section}] "
