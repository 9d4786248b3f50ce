"""The study file as TOML spells it: tables, keys, types, limits and defaults, with what each key means.

The tables [budget] and [confirm] are the values that the rest of hpstudy reads. Rules between keys are in checks.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from hpstudy.errors import CONTROLS, UserError, did_you_mean
from hpstudy.hparams import RULES, SEARCHABLE, Scale
from hpstudy.spec import MAX_TRIALS, MODELS, PrecisionChoice, corpus_hint, num_ranks, vocab_size
from hpstudy.study.hints import hint

MetricName = Literal["val/loss", "train/tok_per_sec"]
Direction = Literal["minimize", "maximize"]
SamplerName = Literal["tpe", "gp", "random", "qmc", "grid"]
LEARNING: tuple[SamplerName, ...] = ("tpe", "gp")  # from trials
PrunerName = Literal["none", "median", "successive_halving", "foresight"]
Design = Literal["paired", "independent"]
Opponent = Literal["tuned-lr", "batch"]
Yes = Literal["better", "worse", "equivalent", "faster", "slower"]
RuleName = Literal["combined", "step-law", "half-life", "power-lines", "decay-to-zero", "sqrt-batch", "batch-0.3"]

COMBINED: tuple[RuleName, ...] = ("step-law", "half-life", "power-lines", "decay-to-zero")  # each sees those before it
RULE_KEYS: dict[RuleName, tuple[str, ...]] = {
    "combined": ("lr", "batch_tokens", "beta2", "weight_decay", "min_lr_fraction", "decay_fraction"),
    "step-law": ("lr", "batch_tokens"),
    "half-life": ("beta2",),
    "power-lines": ("weight_decay",),
    "decay-to-zero": ("min_lr_fraction", "decay_fraction"),
    "sqrt-batch": ("lr",),
    "batch-0.3": ("lr",),
}
"""Published rule -> the keys that it speaks about, in the order in which "auto" proposes them."""
GOALS: dict[MetricName, Direction] = {"val/loss": "minimize", "train/tok_per_sec": "maximize"}
CORPUS_KINDS = ("text", "shards", "raw")  # with a path or a glob after a colon
LOOKS = (3, 5, 8, 12, 20)  # seeds a side at which a race is judged, if the file states none
LEAST_LOOK = 3  # two seeds agree by chance too often where losses come in two clusters
MAX_LOOKS = 20  # each costs a tenth of a second in every command that shows a verdict
FORMAT = 4  # the newest, which a file has that states none
FORMAT_OF_SEARCH = 4  # whose defaults of the search were measured; `newest` in the tables
MAX_INTEGER = 2**63 - 1  # TOML's own limit
MAX_LISTED = 1000  # choices of a key, or seeds
MAX_SECONDS = 1e9
MAX_SOURCES = 100  # of a warm start
MAX_FIRST = 100  # points that a study tries first
MAX_RUNGS = 12  # of a ladder
MAX_SHOWN = 200  # characters of a value in an error message
SEEDS_APART = 1_000_000  # between a candidate's seed and the baseline's, with design = "independent"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word of the file, beginning with `; `, or an empty string."""
    places = {"model": "[trainer] model", "sampler": "[budget] sampler", "pruner": "[budget] pruner"}
    tables = {places.get(name, f"[{name}]"): tuple(table.model_fields) for name, table in TABLES.items()}
    return hint(word, known, {**tables, "[hparams]": tuple(RULES)})


def shown(value: object) -> str:
    """A value as TOML spells it, near enough for an error message, and cut when it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def other_seed(seed: int) -> int:
    """The baseline's seed for a candidate's `seed` when the design is independent."""
    return (seed + SEEDS_APART) % 2**32


def _preset(model: object) -> object:
    """Replaces a preset's name by its table."""
    if not isinstance(model, str):
        return model
    if model not in MODELS:
        raise ValueError(f'unknown preset "{model}"{nearest(model, MODELS)}; known are {", ".join(MODELS)}')
    return asdict(MODELS[model])


def _one_line(text: str) -> str:
    if CONTROLS.search(text):
        raise ValueError(f"must be one line without control characters, but got {shown(text)}")
    return text


def _corpus(name: str) -> str:
    """Checks the form of a corpus name; whether the corpus exists is for hpstudy.data to say."""
    kind, colon, rest = name.partition(":")
    if name in ("asv", "fineweb-edu") or (kind in CORPUS_KINDS and rest):
        return name
    if kind in CORPUS_KINDS:
        raise ValueError(f'"{kind}:" must be followed by a {"path" if kind == "text" else "glob"}, but got "{name}"')
    words = ("asv", "fineweb-edu", *(f"{kind}:" for kind in CORPUS_KINDS))
    near = corpus_hint(name) or did_you_mean(kind + colon, words)
    raise ValueError(
        f'unknown corpus "{name}"{near}; known are "asv", "fineweb-edu", "text:PATH", "shards:GLOB" and "raw:GLOB"'
    )


def _tokenizer(name: str) -> str:
    try:
        vocab_size(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


def _named(value: object) -> object:
    """Reads `"tpe"` as `{ name = "tpe" }`."""
    return {"name": value} if isinstance(value, str) else value


def _pack(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f'must be a whole number of at least 1, or "auto", but got {shown(value)}')


def _ladder_batch(value: object) -> object:
    if value == "step-law" or (type(value) in (int, float) and 0 < value <= 1):  # type: ignore[operator]
        return value
    raise ValueError(f'must be a share of the run in (0, 1], or "step-law", but got {shown(value)}')


def _ladder_trials(value: object) -> object:
    counts = value if isinstance(value, list) else [value]
    if value is None or (counts and all(type(count) is int and count >= 1 for count in counts)):
        return value
    raise ValueError(f"must be a whole number of at least 1, or a list of these, but got {shown(value)}")


def _rules(value: object) -> object:
    """Reads one rule's name as a list, and refuses unknown names."""
    if value is None or value == "auto":
        return value
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise ValueError(f'must be "auto" or a list of rules, but got {shown(value)}; as in `rules = ["step-law"]`')
    known = list(RULE_KEYS)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) if isinstance(name, str) else ""
            raise ValueError(f"unknown rule {shown(name)}{near}; known are {', '.join(known)}")
    return tuple(names)


def _listed(value: object) -> object:
    """Reads `"val/loss"` as `["val/loss"]`."""
    return [value] if isinstance(value, str) else value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _dimension_kind(value: object) -> str:
    return "choices" if isinstance(value, dict) and "choices" in value else "range"


def _key(default: Any, doc: str, example: Any = None, *, unit: str = "", newest: Any = None, **limits: Any) -> Any:
    """A key's default, meaning and limits. `example` and `unit` are for the reference.

    `newest` is the default since format 4, if it differs. The older one stays the field's, because derived seeds
    follow from what differs from it; see `Table.in_format`.
    """
    extra = {"example": next(value for value in (example, newest, default) if value is not None), "unit": unit}
    if newest is not None:
        extra["newest"] = newest
    return Field(default, description=doc, json_schema_extra=extra, **limits)


def _source(name: str) -> str:
    """Checks the form of a source of trials; whether it exists is for hpstudy.running to say."""
    kind, colon, rest = name.partition(":")
    if not colon or (kind == "optuna" and rest) or (kind == "wandb" and all(rest.split("/")) and rest.count("/") == 2):
        return name
    raise ValueError(f'must be "STUDY", "wandb:ENTITY/PROJECT/STUDY" or "optuna:PATH", but got {shown(name)}')


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Source = Annotated[Text, AfterValidator(_source)]
Look = Annotated[int, Field(ge=LEAST_LOOK)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range that NumPy's generators accept
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]


class Table(BaseModel):
    """A TOML table: no unknown keys, no conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def in_format(self, version: int) -> Self:
        """The table with the defaults of format `version` for keys that are not stated, also in tables within it."""
        changes: dict[str, Any] = {}
        for key, field in type(self).model_fields.items():
            value, extra = getattr(self, key), field.json_schema_extra
            if isinstance(value, Table):
                changes[key] = value.in_format(version)
            elif version >= FORMAT_OF_SEARCH and key not in self.model_fields_set and isinstance(extra, dict):
                changes |= {key: extra["newest"]} if "newest" in extra else {}
        return self.model_copy(update=changes)


class BaselineTable(Table):
    """What the search is compared with."""

    name: Literal["gpt3"] = _key("gpt3", "whose values: GPT-3 Small's (arXiv:2005.14165)")
    also: Annotated[list[Opponent], BeforeValidator(_listed)] = _key(
        [],
        "further opponents: tuned-lr has GPT-3's values with only lr tuned, in as many trials as the search has; batch "
        "has the baseline's with the winner's batch, so that more steps are not taken for better values",
        "tuned-lr",
    )
    overrides: dict[str, Any] = _key({}, "values of the baseline alone, over [hparams]", {"batch_tokens": 8192})


class ModelTable(Table):
    """The shape of the model."""

    layers: Count = _key(..., "transformer blocks", 2, le=1000)
    heads: Count = _key(..., "attention heads", 2, le=1000)
    width: Count = _key(..., "width of the residual stream, a multiple of heads", 64, le=2**17)


_SHARED = (
    "each takes an equal part of every batch, which must be a multiple of micro_batch x context for each. The last "
    "bits of a run differ from those of one alone, as with another micro-batch"
)


class TrainerTable(Table):
    """What is the same in every run."""

    model: Annotated[ModelTable, BeforeValidator(_preset)] = _key(
        ..., f"a preset ({', '.join(MODELS)}), or a table of the keys below", "gpt-2x64"
    )
    corpus: Annotated[Text, AfterValidator(_corpus)] = _key(
        "asv",
        "asv, text:PATH, shards:GLOB, raw:GLOB or fineweb-edu; `hpstudy corpora` lists them. Between two documents of "
        "text:PATH (files, lines of .jsonl, rows of .parquet) comes GPT-2's end-of-text token, or a blank line if the "
        "tokenizer has none",
    )
    tokenizer: Annotated[str, AfterValidator(_tokenizer)] = _key(
        "gpt2", "gpt2, gpt2:N (its first N ranks) or bytes", "gpt2:512"
    )
    context: Count = _key(1024, "length of one sequence", 128, unit="tokens", le=2**20)
    tokens: Annotated[int, Field(ge=1, le=10**15)] | None = _key(
        None, "budget of one run; give either this or seconds", 300_000, unit="tokens"
    )
    seconds: Seconds | None = _key(None, "budget of one run's training; give either this or tokens", 60, unit="s")
    evals: Count = _key(20, "evaluations of one run, equally spaced in tokens", le=100_000)
    val_tokens: Count = _key(2**16, "size of the validation set", unit="tokens", le=10**9)
    val: Text | None = _key(
        None,
        'of a corpus shards:GLOB or raw:GLOB, the files that validate: a glob, or "tail"; else by their names',
        "val/*.bin",
    )
    confirm_val: bool | None = _key(
        None,
        "runs on fresh seeds validate on a second held-out slice, which has chosen nothing; true in format 2",
        True,
    )
    seed: Seed = _key(0, "seed of initialisation and data order in the search")
    threads: Count = _key(1, "CPU threads of one training", le=512)
    precision: PrecisionChoice = _key("auto", "bf16 if the device has it, with fp32 weights, or fp32", "fp32")
    deterministic: bool = _key(
        True,
        "whether a GPU repeats a run to the last bit; if false it takes cuDNN's attention and is faster, but a run "
        "trained again differs a little, so trials are no longer a function of the file alone. A CPU always repeats",
        False,
    )
    gpus: Count = _key(1, f"GPUs of one training, all on one machine; {_SHARED}", 2, le=64)
    processes: Count = _key(
        1,
        f"processes of one training on a CPU, of `threads` threads each; {_SHARED}",
        2,
        le=64,
    )

    @property
    def ranks(self) -> int:
        """Processes that train one run together."""
        return num_ranks(self.gpus, self.processes)


Shape = Annotated[ModelTable, BeforeValidator(_preset)]
Tokens = Annotated[int, Field(ge=1, le=10**15)]


class RangeTable(Table):
    """A continuous range."""

    low: float = _key(..., "lowest value", 3e-4)
    high: float = _key(..., "highest value", 3e-2)
    scale: Scale | None = _key(
        None,
        "scale of the search; log1m is the log of 1 - value, for betas. By default the key's own, in the table of the "
        "hyperparameters; before format 3 linear",
        "log",
    )


class ChoicesTable(Table):
    """A list of values."""

    choices: list[Any] = _key(..., "at least two different values", [1024, 4096], max_length=MAX_LISTED)


def natural_scale(key: str, version: int) -> Scale:
    """The scale of a range of `key` that states none, in a file of format `version`."""
    return SEARCHABLE[key].scale if version >= 3 else "linear"


DimensionTable = Annotated[
    Annotated[RangeTable, Tag("range")] | Annotated[ChoicesTable, Tag("choices")], Discriminator(_dimension_kind)
]


class ObjectiveTable(Table):
    """What the search improves."""

    metric: Annotated[list[MetricName], BeforeValidator(_listed)] = _key(
        ["val/loss"], "one metric, or both in a list for a Pareto front", min_length=1
    )
    goal: Annotated[list[Direction], BeforeValidator(_listed)] | None = _key(
        None, "direction of each metric; may only state the natural one", ["minimize"]
    )


class Sampler(Table):
    """How Optuna proposes trials."""

    name: SamplerName = _key(
        "tpe",
        "gp and tpe learn from results, gp in fewer trials but in 0.1 s each; from trial 200 on gp is tpe. grid tries "
        "every combination of choices once. Before format 4 tpe was the default",
        newest="gp",
    )
    startup: Count = _key(
        10,
        "results before tpe or gp learns from them; until then it tries points of a Sobol sequence. Before format 4 "
        "the default was 10, at random",
        newest=5,
        le=MAX_TRIALS,
    )
    seed: Seed = _key(0, "seed of the proposals")


class Pruner(Table):
    """Which trials are stopped early. Divergence is always stopped."""

    name: PrunerName = _key(
        "none",
        "median and successive_halving are Optuna's; foresight forecasts a trial's final loss from its losses and its "
        "learning-rate schedule, from 15% of the evaluations on, and reads no other key",
        "foresight",
    )
    startup: Annotated[int, Field(ge=0)] = _key(5, "median: trials that are never stopped")
    from_fraction: Annotated[float, Field(ge=0, lt=1)] = _key(
        0.3,
        "median, successive_halving: share of the evaluations before which no trial is stopped; early losses misjudge "
        "high learning rates",
    )
    reduction: Annotated[int, Field(ge=2)] = _key(3, "successive_halving: one trial in so many passes each rung")


class Budget(Table):
    """What the search may spend, and how far it proposes ahead of results."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = _key(
        None, "trials of the search; 16, a grid's size, or 1 if nothing is searched", 12
    )
    parallel: Count = _key(
        4, "trials proposed before the result of the first is known; workers beyond it idle", le=10_000
    )
    pack: Annotated[int | Literal["auto"], BeforeValidator(_pack)] = (
        1  # ignored; versions before 0.2 trained trials as one
    )
    sampler: Annotated[Sampler, BeforeValidator(_named)] = _key(Sampler(), "a name, or a table of the keys below")
    pruner: Annotated[Pruner, BeforeValidator(_named)] = _key(Pruner(), "a name, or a table of the keys below")
    rules: Annotated[
        Literal["auto"] | Annotated[tuple[RuleName, ...], Field(max_length=len(RULE_KEYS))],
        BeforeValidator(_rules),
    ] = _key(
        (),
        "published formulas that propose trials beside the sampler: auto lets every rule that speaks about a searched "
        "key propose one, in every fourth trial from the first after the baseline on; a list lets these, right after "
        "the baseline; [] none. They are for val/loss alone, and not for grids. auto by default; before format 4 none",
        newest="auto",
    )
    warm_start: Annotated[tuple[Source, ...], BeforeValidator(_tuple), BeforeValidator(_listed)] = _key(
        (),
        "other studies whose finished trials the sampler knows from the start, with the same searched keys: a study in "
        "the folder of runs, wandb:ENTITY/PROJECT/STUDY, or optuna:PATH of a journal or an SQLite file. Kept in the "
        "run folder when the study begins; they are no trials of the study, and fade as its own results come in",
        ["betas", "optuna:old.journal"],
        max_length=MAX_SOURCES,
    )
    first: Annotated[tuple[dict[str, Any], ...], Field(max_length=MAX_FIRST), BeforeValidator(_tuple)] = _key(
        (),
        "points that are tried first, after the baseline: each states every searched key",
        [{"beta1": 0.9, "beta2": 0.99}],
    )
    smaller_micro_batch: bool = _key(
        True, "after out of memory, try again at a smaller micro-batch; the loss stays the same"
    )
    hang_seconds: Seconds | None = _key(
        None, "silence after which a worker counts as hung; by default from the pace of the steps", 900, unit="s"
    )

    def num_known(self, number: int) -> int:
        """How many trials, from 0 on, have ended for sure when trial `number` is asked."""
        return max(0, number - self.parallel + 1)


class Confirm(Table):
    """The runs on fresh seeds, which alone make a verdict."""

    looks: Annotated[tuple[Look, ...], Field(min_length=1, max_length=MAX_LOOKS), BeforeValidator(_tuple)] | None = (
        _key(
            None,
            "a race: after so many seeds a side, each time, decided candidates stop. Needs the paired design and "
            "val/loss alone, and is the default there unless seeds are stated",
            LOOKS,
        )
    )
    seeds: Annotated[tuple[Seed, ...], Field(max_length=MAX_LISTED), BeforeValidator(_tuple)] | None = _key(
        None,
        "seeds on which winner and baseline train again, at least 3 for a verdict; without looks all of them train, "
        "and the list may grow later. By default they follow from the study's name and values, so that no two studies "
        "share them",
        [101, 102, 103, 104, 105],
    )
    top: Count = _key(1, "how many of the best trials are confirmed; the levels are adjusted for all", le=MAX_LISTED)
    margin: Annotated[float, Field(ge=0)] | None = _key(
        None, "a smaller difference does not matter, so that it counts as equivalent", 0.01, unit="nats"
    )
    design: Design = _key(
        "paired", f"paired: both sides on the same seeds; independent: the baseline's are {SEEDS_APART:,} higher"
    )
    speedup: bool = _key(
        False, "the winner also at a half and three quarters of the budget: how much sooner it has the baseline's loss"
    )


class ClusterTable(Table):
    """Which nodes of a cluster may train runs, with `--cluster`."""

    mixed: bool = _key(
        False,
        "whether nodes of another kind than the first (processor or GPU, torch, precision, code) may train too; then "
        "runs need not repeat to the last bit, and the report says which kinds there were",
        True,
    )


class LadderTable(Table):
    """The same study at several sizes. A file with this table is a ladder, and each of its rungs is a study."""

    models: Annotated[list[Shape], Field(min_length=2, max_length=MAX_RUNGS)] | None = _key(
        None,
        "the rungs' models, from small to large, instead of [trainer] model; without it one model is trained on "
        "growing budgets",
        ["gpt-2x32", "gpt-2x64", "gpt-3x96"],
    )
    tokens: Annotated[list[Tokens], Field(max_length=MAX_RUNGS)] | None = _key(
        None, "the rungs' budgets of one run, instead of [trainer] tokens", [200_000, 300_000, 500_000], unit="tokens"
    )
    tokens_per_parameter: Annotated[float, Field(gt=0, le=1e6)] | None = _key(
        None, "budget of every size, in tokens for each parameter without embeddings, instead of tokens", 20
    )
    batch: Annotated[float | Literal["step-law"] | None, BeforeValidator(_ladder_batch)] = _key(
        None,
        "batch of every size, instead of [hparams] batch_tokens: a share of the run's tokens, or 0.58 tokens^0.571 "
        "(arXiv:2503.04715); in either case the nearest power of two sequences",
        "step-law",
    )
    trials: Annotated[list[Count] | Count | None, BeforeValidator(_ladder_trials)] = _key(
        None, "trials of the rungs' searches, one number or one for each rung, instead of [budget] trials", [32, 24, 16]
    )
    check: Shape | None = _key(
        None, "a larger model, which the fit does not see: there the prediction is compared with others", "gpt-4x128"
    )
    check_tokens: Tokens | None = _key(None, "budget of the check, if tokens lists the rungs'", 800_000, unit="tokens")
    check_trials: Count = _key(16, "trials of the check's own search", le=MAX_TRIALS)
    check_seeds: Annotated[int, Field(ge=LEAST_LOOK, le=MAX_LOOKS)] = _key(
        LEAST_LOOK, "fresh seeds on which the check's sides are trained"
    )
    check_rules: Annotated[
        tuple[RuleName, ...], Field(max_length=len(RULE_KEYS)), BeforeValidator(_tuple), BeforeValidator(_listed)
    ] = _key((), "published rules that are sides of the check too", ["step-law"])
    check_margin: Annotated[float, Field(gt=0)] = _key(0.01, "regret up to which the prediction has held", unit="nats")
    target: Shape | None = _key(None, "the model that a study file is written for", "gpt-125m")
    target_tokens: Tokens | None = _key(
        None, "budget of the target, if tokens lists the rungs'", 2_500_000_000, unit="tokens"
    )


class WandbTable(Table):
    """Where runs go on Weights & Biases."""

    project: Text = _key("hpstudy", "project; WANDB_PROJECT overrides it")
    entity: Text | None = _key(None, "user or team; WANDB_ENTITY overrides it", "my-team")


class StudyFile(Table):
    """A whole file."""

    question: Text = _key(..., "what the study asks, in one line", "Are GPT-3's betas right here?")
    yes: Annotated[list[Yes], BeforeValidator(_listed)] = _key(
        [], "answers of the verdict that mean yes; it then begins with Yes, No or Undecided", "better"
    )
    format: Literal[1, 2, 3, 4] | None = _key(
        None,
        "version of this format, by default the newest; once a study has begun, the one that it began with. Before "
        "format 4 no rules proposed trials by default, choices had no order, the first trials were random and the "
        "sampler had other defaults; before format 3 every range was linear by default. In format 1 [confirm] had "
        "other defaults: seeds 101 to 105 and a margin of 0.01",
        FORMAT,
    )
    part_of: Text | None = _key(None, "the ladder that this study is a part of; hpstudy writes it", "ladder")
    baseline: BaselineTable = BaselineTable()
    trainer: TrainerTable
    hparams: dict[str, Any] = {}  # checked key by key against hparams.RULES
    search: dict[str, DimensionTable]
    objective: ObjectiveTable = ObjectiveTable()
    budget: Budget = Budget()
    confirm: Confirm = Confirm()
    cluster: ClusterTable = ClusterTable()
    wandb: WandbTable = WandbTable()

    @property
    def version(self) -> int:
        """The format whose defaults the file has."""
        return self.format or FORMAT


TABLES: dict[str, type[Table]] = {
    "baseline": BaselineTable,
    "trainer": TrainerTable,
    "model": ModelTable,
    "range": RangeTable,
    "choices": ChoicesTable,
    "objective": ObjectiveTable,
    "budget": Budget,
    "sampler": Sampler,
    "pruner": Pruner,
    "confirm": Confirm,
    "cluster": ClusterTable,
    "ladder": LadderTable,
    "wandb": WandbTable,
}
"""The tables within a file, by the last part of their place, in the order of the reference."""
