"""The rules for the values of a study file, alone and between keys. Each broken rule gives one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hpstudy.coordinates import RunSize, batch_of, raw_values
from hpstudy.hparams import COORDINATES, GPT3, RULES, SEARCHABLE, fitting_batch, raw_key
from hpstudy.spec import MAX_STEPS, ModelShape, rank_sequences, ranks_named
from hpstudy.study.parse import Finding
from hpstudy.study.schema import (
    GOALS,
    LEARNING,
    MAX_INTEGER,
    RULE_KEYS,
    SEEDS_APART,
    ChoicesTable,
    RangeTable,
    StudyFile,
    natural_scale,
    nearest,
    other_seed,
    shown,
)
from hpstudy.study.study import AUTO, default_micro_batch

LEAST_STEPS = 20  # of a run; half of them are warm-up then
MAX_NAMED = 8  # micro-batches that one problem names
MAX_GRID = 100_000  # points, which are listed before the first trial
BETAS = ("beta1", "beta2")
NEED_TOKENS = ("step-law", "power-lines")  # rules
BATCH_KEYS = frozenset({"batch_tokens", "batch_ramp_fraction", "batch_ramp_start"})


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch that a trial or the baseline may have."""

    place: str  # in the file, with the key
    stated: set[int] = field(default_factory=set)  # its micro-batches that the file states
    micro_batches: set[int] = field(default_factory=set)  # all, those that it takes by default included


def batches(file: StudyFile) -> dict[int, Batch]:
    """Every batch, in tokens, that a trial or the baseline may have.

    A micro-batch of "auto" counts as not stated, so that batches and the steps of a ramp do not depend on the device.
    """
    found: dict[int, Batch] = {}

    def add(place: str, batch: int, stated: Iterable[int]) -> None:
        entry = found.setdefault(batch, Batch(place=place))
        entry.stated.update(stated)
        default = default_micro_batch(rank_sequences(batch, file.trainer.context, file.trainer.ranks))
        entry.micro_batches.update(stated or (default,))

    stated = "micro_batch" in file.search or file.hparams.get("micro_batch", AUTO) != AUTO
    key = "batch_fraction" if "batch_fraction" in file.search else "batch_tokens"
    for batch in _fraction_batches(file) if key == "batch_fraction" else _values(file, key):
        place = "[search]" if key in file.search else "[hparams]"
        add(f"{place} {key}", batch, _values(file, "micro_batch") if stated else ())
    own = {"micro_batch": AUTO, **file.hparams, **file.baseline.overrides}
    micro_batch = own["micro_batch"]
    sizes = () if micro_batch == AUTO else (micro_batch,)
    add("[baseline] overrides: batch_tokens", own.get("batch_tokens", GPT3.batch_tokens), sizes)
    return found


def _fraction_batches(file: StudyFile) -> list[int]:
    """Every batch that a searched batch_fraction makes; those at the shorter budgets of a speed-up too."""
    size = _run_size(file)
    if size is None:
        return []
    dimension, ends = file.search["batch_fraction"], _values(file, "batch_fraction")
    made = {batch_of(fraction, size) for fraction in ends}
    if isinstance(dimension, RangeTable):
        made = {min(made) << power for power in range((max(made) // min(made)).bit_length())}
    if file.confirm.speedup:
        made |= {max(batch // 2, size.batch_unit) for batch in made}
    return sorted(made)


def _run_size(file: StudyFile) -> RunSize | None:
    """The sizes that coordinates take; None without a budget in tokens."""
    trainer = file.trainer
    if trainer.tokens is None:
        return None
    shape = ModelShape(**trainer.model.model_dump())
    return RunSize(weights=shape.num_weights, tokens=trainer.tokens, batch_unit=trainer.context * trainer.ranks)


def problems(file: StudyFile, shape: list[Finding]) -> list[str]:
    """Every problem of a file whose shape has the findings `shape`.

    A rule between keys is checked only if all the keys that it reads are sound.
    """
    findings = [*shape, *_hyperparameters(file), *_dimensions(file)]
    wrong = {key for key, _ in findings}
    for rule, reads in _RULES:
        if not any(_overlap(key, need) for key in wrong for need in reads.split()):
            findings += [(reads, sentence) for sentence in rule(file)]
    return [sentence for _, sentence in findings]


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _values(file: StudyFile, key: str) -> list[Any]:
    """The values that trials may give a key: its choices, the ends of its range, or its one value."""
    dimension = file.search.get(key)
    if dimension is None:
        return [file.hparams.get(key, getattr(GPT3, key))]
    return dimension.choices if isinstance(dimension, ChoicesTable) else [dimension.low, dimension.high]


def _hyperparameters(file: StudyFile) -> Iterator[Finding]:
    """Checks each value of [hparams] and [baseline] overrides."""
    for section, place, table in (
        ("hparams", "[hparams] ", file.hparams),
        ("baseline", "[baseline] overrides: ", file.baseline.overrides),
    ):
        for key, value in table.items():
            if section == "hparams" and key == "micro_batch" and value == AUTO:
                continue
            if key in COORDINATES:
                yield (
                    f"{section}.{key}",
                    f"{place}{key}: is for [search] alone; state {raw_key(key)}, for which it stands",
                )
            elif key not in RULES:
                yield f"{section}.{key}", place + _unknown(key, RULES)
            elif problem := RULES[key].problem(value):
                yield f"{section}.{key}", f"{place}{key}: {problem}"


def _dimensions(file: StudyFile) -> Iterator[Finding]:
    """Checks each dimension of [search]."""
    for key, dimension in file.search.items():
        if key not in SEARCHABLE:
            yield f"search.{key}", f"[search] {_unknown(key, SEARCHABLE)}"
            continue
        if key in file.hparams:
            yield f"search.{key}", f"[search] {key}: also in [hparams]; a key is searched or fixed, remove one of them"
        for place, table in (("in [hparams]", file.hparams), ("searched", file.search)):
            if key in COORDINATES and (raw := raw_key(key)) in table:
                yield f"search.{key}", f"[search] {key}: stands for {raw}, which is also {place}; remove one of them"
        sentences = _choices(key, dimension) if isinstance(dimension, ChoicesTable) else _range(file, key, dimension)
        for sentence in sentences:
            yield f"search.{key}", f"[search] {key}: {sentence}"


def _unknown(key: str, known: Iterable[str]) -> str:
    return f'unknown key "{key}"' + (nearest(key, known) or f"; known are {', '.join(known)}")


def _range(file: StudyFile, key: str, dimension: RangeTable) -> Iterator[str]:
    low, high, rule = dimension.low, dimension.high, SEARCHABLE[key]
    scale = dimension.scale or natural_scale(key, file.version)
    if rule.kind is not float:
        example = '["global", "none"]' if rule.kind is str else "[8, 16, 32]"
        yield f"has no continuous range; search it with {{ choices = {example} }}"
        return
    for end, value in (("low", low), ("high", high)):
        if problem := rule.problem(value):
            yield f"{end} {problem}"
    if not low < high:
        yield f"`low < high` must hold, but got low={low:g}, high={high:g}"
    if scale == "log" and low == 0 and rule.allows(low):
        natural = "" if dimension.scale else f", which is the default of {key},"
        yield f'scale "log"{natural} needs low > 0, but got low=0; raise low or use scale = "linear"'
    if scale == "log1m" and key not in BETAS:
        yield 'scale "log1m" is the log of 1 - value and fits beta1 and beta2; use scale = "log"'


def _choices(key: str, dimension: ChoicesTable) -> Iterator[str]:
    values = dimension.choices
    bad = [problem for value in values if (problem := SEARCHABLE[key].problem(value))]
    yield from (f"choices {problem}" for problem in bad)
    if not bad and (len(set(values)) < len(values) or len(values) < 2):
        yield f"choices must be at least two different values, but got {shown(values)}"


def _auto_micro_batch(file: StudyFile) -> Iterator[str]:
    own = file.baseline.overrides.get("micro_batch")
    if file.hparams.get("micro_batch") == AUTO and own is not None:
        yield (
            f'[baseline] overrides: micro_batch: "auto" in [hparams] finds one for baseline and trials, but got {own}; '
            "remove one of them"
        )


def _run_budget(file: StudyFile) -> Iterator[str]:
    tokens, seconds = file.trainer.tokens, file.trainer.seconds
    if (tokens is None) == (seconds is None):
        got = "neither" if tokens is None else f"tokens={tokens} and seconds={seconds:g}"
        yield f"[trainer] tokens: a run's budget is stated in tokens or in seconds, exactly one, but got {got}"


def _coordinates(file: StudyFile) -> Iterator[str]:
    """Coordinates need a budget in tokens, and must stand for legal values in the whole space."""
    searched, size = [key for key in file.search if key in COORDINATES], _run_size(file)
    if size is None:
        if searched and file.trainer.seconds is not None:
            yield (
                f"[search] {', '.join(searched)}: a coordinate takes the tokens of a run, but [trainer] states "
                f"seconds; state tokens, or search {', '.join(map(raw_key, searched))}"
            )
        return
    dimension = file.search.get("batch_fraction")
    if isinstance(dimension, ChoicesTable):
        made = {choice: batch_of(choice, size) for choice in dimension.choices}
        if len(set(made.values())) < len(made):
            listed = ", ".join(f"{choice:g} is {batch}" for choice, batch in made.items())
            yield (
                "[search] batch_fraction: choices must be different batches after rounding to context x ranks x a "
                f"power of two, but {listed} tokens; take them further apart"
            )
    keys = list(dict.fromkeys([*searched, *(key for key in ("lr", "batch_tokens") if key in file.search)]))
    fixed = {"lr": file.hparams.get("lr", GPT3.lr), "batch_tokens": file.hparams.get("batch_tokens", GPT3.batch_tokens)}
    illegal = dict[str, str]()
    for corner in product(*([min(ends), max(ends)] for ends in (_values(file, key) for key in keys))):
        try:
            raw = raw_values({**fixed, **dict(zip(keys, corner, strict=True))}, size)
        except OverflowError:
            yield f"[search] {', '.join(searched)}: stand for values beyond all numbers; narrow the ranges"
            return
        illegal |= {key: p for key in searched if (p := RULES[raw_key(key)].problem(raw[raw_key(key)]))}
    for key, problem in illegal.items():
        yield f"[search] {key}: stands for {raw_key(key)}, which {problem}, at an end of the ranges; narrow them"


def _warmup_in_seconds(file: StudyFile) -> Iterator[str]:
    fixed = "warmup_fraction" in file.hparams or "warmup_fraction" in file.baseline.overrides
    if file.trainer.seconds is not None and "warmup_fraction" in file.search and not fixed:
        yield (
            "[search] warmup_fraction: the baseline's own depends on the run's tokens, which are not known in time "
            "with a budget in seconds; fix it in [baseline] overrides, or state the budget in tokens"
        )


def _model(file: StudyFile) -> Iterator[str]:
    width, heads = file.trainer.model.width, file.trainer.model.heads
    if width % heads:
        fewer = next(number for number in range(heads, 0, -1) if width % number == 0)
        yield (
            f"[trainer] model: width must be a multiple of heads, but got width={width}, heads={heads}; e.g. "
            f"heads={fewer}"
        )


def _validation(file: StudyFile) -> Iterator[str]:
    context, got = file.trainer.context, file.trainer.val_tokens
    if got < context:
        yield f"[trainer] val_tokens: must hold one sequence, context = {context}, but got {got}"


def _val_shards(file: StudyFile) -> Iterator[str]:
    if file.trainer.val and not file.trainer.corpus.startswith(("shards:", "raw:")):
        yield (
            f'[trainer] val: only a corpus "shards:GLOB" or "raw:GLOB" has files that validate, but the corpus is '
            f"{shown(file.trainer.corpus)}; leave it out"
        )


def _vocabulary(file: StudyFile) -> Iterator[str]:
    if file.trainer.corpus == "fineweb-edu" and file.trainer.tokenizer != "gpt2":
        yield f'[trainer] tokenizer: "fineweb-edu" is tokenized with "gpt2", but got "{file.trainer.tokenizer}"'


def _ranks(file: StudyFile) -> Iterator[str]:
    gpus, processes, pack = file.trainer.gpus, file.trainer.processes, file.budget.pack
    if gpus > 1 and processes > 1:
        yield (
            "[trainer] processes: a training takes several GPUs or, on a CPU, several processes, but got "
            f"gpus={gpus} and processes={processes}; remove one of them"
        )
    elif file.trainer.ranks > 1 and pack != 1:
        named = ranks_named(gpus, processes)
        yield f"[budget] pack: one training on {named} cannot train several trials as one; leave it out"


def _batches(file: StudyFile) -> Iterator[str]:
    context, ranks = file.trainer.context, file.trainer.ranks
    named = ranks_named(file.trainer.gpus, file.trainer.processes)
    each = f" for each of {named}" if named else ""
    for batch, found in batches(file).items():
        bad = sorted(size for size in found.stated or {1} if batch % (size * context * ranks))
        if bad:
            unit = math.lcm(*found.stated) * context * ranks
            multiples = (batch // unit * unit, batch // unit * unit + unit)
            near = [str(tokens) for tokens in multiples if 0 < tokens <= MAX_INTEGER]
            sizes = f"{', '.join(map(str, bad[:MAX_NAMED]))}{', ...' if len(bad) > MAX_NAMED else ''}"
            yield (
                f"{found.place}: must be a multiple of {'micro_batch x ' if found.stated else ''}context{each}, but "
                f"{batch} is not{f' for micro_batch {sizes}' if found.stated else ''} at context {context}"
                f"; {'the nearest that work: ' + ', '.join(near) if near else 'choose micro-batches that divide it'}"
                f"{'; it counts tokens, not sequences' if batch < context else ''}"
            )


def _steps(file: StudyFile) -> Iterator[str]:
    tokens, context = file.trainer.tokens, file.trainer.context
    for batch, found in batches(file).items():
        place = found.place
        if tokens is not None and tokens < batch:
            table = file.search if place.startswith("[search]") else {**file.hparams, **file.baseline.overrides}
            got, remedy = (
                (f"{batch}", "take")
                if "batch_tokens" in table or "batch_fraction" in place
                else (f"GPT-3's {batch}", "state it,")
            )
            unit = context * file.trainer.ranks * math.lcm(*found.stated)
            yield (
                f"{place}: a run must hold at least one step, but got {got} > [trainer] tokens={tokens}; {remedy} e.g. "
                f"{batch_example(tokens, unit)}"
            )
        elif tokens is not None and tokens // batch > MAX_STEPS:
            yield (
                f"{place}: a run may hold at most {MAX_STEPS:,} steps, but [trainer] tokens={tokens} at batch_tokens "
                f"{batch} are {tokens // batch:,}; raise batch_tokens or lower tokens"
            )


def batch_example(tokens: int, unit: int) -> str:
    """A batch, a multiple of `unit` tokens, that suits a run of `tokens` tokens, or of as many as it needs at least."""
    batch = fitting_batch(tokens, unit)
    more = "" if tokens >= batch else f", with tokens={LEAST_STEPS * batch}"
    return f"{batch}{more} ({max(tokens // batch, LEAST_STEPS if more else 0)} steps)"


def _schedule(file: StudyFile) -> Iterator[str]:
    """Warm-up must end before the decay does; the scaled default always does."""
    own = {**file.hparams, **file.baseline.overrides}
    warmup, decay = max(_values(file, "warmup_fraction")), min(_values(file, "decay_fraction"))
    sides = [("[search]", warmup, decay)] if "warmup_fraction" in {*file.hparams, *file.search} else []
    if "warmup_fraction" in own and own != file.hparams:
        sides.append(("[baseline] overrides:", own["warmup_fraction"], own.get("decay_fraction", GPT3.decay_fraction)))
    for place, warmup, decay in sides:
        if warmup > decay:
            yield (
                f"{place} warmup_fraction: warm-up must end before the decay does, but got "
                f"warmup_fraction={warmup:g} > decay_fraction={decay:g}"
            )


def _objective(file: StudyFile) -> Iterator[str]:
    metrics, goals = file.objective.metric, file.objective.goal
    if len(set(metrics)) < len(metrics):
        yield f"[objective] metric: two objectives must differ, but got {shown(metrics)}"
    expected = [GOALS[metric] for metric in metrics]
    if goals is not None and goals != expected:
        yield f"[objective] goal: must be {shown(expected)} for {shown(metrics)}, but got {shown(goals)}; leave it out"


def _pruner(file: StudyFile) -> Iterator[str]:
    name = file.budget.pruner.name
    if name != "none" and file.objective.metric != ["val/loss"]:
        yield (
            f'[budget] pruner: "{name}" compares only val/loss, but the objective is {shown(file.objective.metric)}; '
            'use pruner = "none"'
        )
    elif name == "foresight" and file.trainer.tokens is None:
        yield (
            '[budget] pruner: "foresight" must know the schedule in tokens, but [trainer] gives seconds; give tokens, '
            'or use pruner = "median"'
        )


def _warm_start(file: StudyFile) -> Iterator[str]:
    sources, name = file.budget.warm_start, file.budget.sampler.name
    if sources and name not in LEARNING:
        yield f'[budget] warm_start: needs a sampler that learns from trials, {" or ".join(LEARNING)}, but got "{name}"'
    if sources and file.objective.metric != ["val/loss"]:
        yield (
            f"[budget] warm_start: needs val/loss as the only objective, but got {shown(file.objective.metric)}; "
            "speeds of other machines say nothing here"
        )
    if twice := sorted(source for source, times in Counter(sources).items() if times > 1):
        yield f"[budget] warm_start: must name each source once, but these are there twice: {', '.join(twice)}"


def _first(file: StudyFile) -> Iterator[str]:
    """Each point that is tried first must be one of the space."""
    for number, point in enumerate(file.budget.first, start=1):
        place = f"[budget] first: point {number}"
        if point.keys() != file.search.keys():
            keys = ", ".join(file.search)
            yield f"{place}: must state every searched key and no other ({keys}), but got {shown(point)}"
            continue
        for key, value in point.items():
            table = file.search[key]
            if isinstance(table, ChoicesTable):
                if value not in table.choices:
                    yield f"{place}: {key}: must be one of {shown(table.choices)}, but got {shown(value)}"
            elif isinstance(value, bool | str) or not isinstance(value, int | float):
                yield f"{place}: {key}: must be a number, but got {shown(value)}"
            elif not table.low <= value <= table.high:
                yield f"{place}: {key}: must lie in [{table.low:g}, {table.high:g}], its range, but got {value!r}"


def _trials(file: StudyFile) -> Iterator[str]:
    if not file.search and (file.budget.trials or 1) > 1:
        yield f"[budget] trials: an empty [search] has one trial, the baseline, but got {file.budget.trials}"


def _grid(file: StudyFile) -> Iterator[str]:
    ranges = [key for key, dimension in file.search.items() if isinstance(dimension, RangeTable)]
    if file.budget.sampler.name == "grid" and ranges:
        yield f'[budget] sampler: "grid" needs choices, but these are ranges: {", ".join(ranges)}'
    elif file.budget.sampler.name == "grid":
        points = math.prod(len(table.choices) for table in file.search.values() if isinstance(table, ChoicesTable))
        if points > MAX_GRID:
            yield f'[budget] sampler: "grid" takes at most {MAX_GRID:,} points, but got {points:,}; take "random"'


def _published(file: StudyFile) -> Iterator[str]:
    """Rules that the file lists must be able to propose a trial. With "auto" those that cannot are left out."""
    rules = file.budget.rules
    if not rules or rules == "auto":
        return
    if file.budget.sampler.name == "grid":
        yield "[budget] rules: a grid tries every point anyway, so no rule proposes any; leave them out"
    if file.objective.metric != ["val/loss"]:
        got = shown(file.objective.metric)
        yield f"[budget] rules: predict values for val/loss alone, but the objective is {got}; leave them out"
    for name in dict.fromkeys(rules):
        if rules.count(name) > 1:
            yield f'[budget] rules: "{name}" is listed twice; list it once'
        if not set(RULE_KEYS[name]) & set(map(raw_key, file.search)):
            keys = ", ".join(RULE_KEYS[name])
            yield f'[budget] rules: "{name}" speaks about {keys}, but [search] has none of them; leave it out'
        elif name in NEED_TOKENS and file.trainer.seconds is not None:
            yield (
                f'[budget] rules: "{name}" takes the tokens of a run, but [trainer] states seconds; state tokens, or '
                "leave the rule out"
            )


def _seeds(file: StudyFile) -> Iterator[str]:
    seeds, search_seed = file.confirm.seeds or (), file.trainer.seed
    twice = sorted(seed for seed, times in Counter(seeds).items() if times > 1)
    if twice:
        yield f"[confirm] seeds: must all differ, but these are listed twice: {', '.join(map(str, twice))}"
    if search_seed in seeds:
        yield f"[confirm] seeds: must be fresh, but {search_seed} is the search's [trainer] seed; choose another"
    if file.confirm.design == "independent" and (taken := sorted({search_seed, *seeds} & set(map(other_seed, seeds)))):
        yield (
            f'[confirm] seeds: design "independent" gives the baseline each seed + {SEEDS_APART}, but '
            f"{', '.join(map(str, taken))} is already the search's or a candidate's seed; choose other seeds"
        )


def _looks(file: StudyFile) -> Iterator[str]:
    looks, seeds = file.confirm.looks, file.confirm.seeds
    if looks is None:
        return
    if sorted(set(looks)) != list(looks):
        yield f"[confirm] looks: must ascend, but got {shown(looks)}"
    if seeds is not None and len(seeds) < looks[-1]:
        yield f"[confirm] seeds: the last of looks needs {looks[-1]}, but got {len(seeds)}; leave seeds out"
    if file.confirm.design == "independent":
        yield '[confirm] looks: Welch\'s test has no calibrated race; use design = "paired", or state seeds instead'
    if file.objective.metric != ["val/loss"]:
        yield "[confirm] looks: only val/loss alone has a calibrated race, not a speed; state seeds instead"


def _yes(file: StudyFile) -> Iterator[str]:
    by_speed = file.objective.metric == ["train/tok_per_sec"]
    possible = ("faster", "slower") if by_speed else ("better", "worse", "equivalent")
    if other := [answer for answer in file.yes if answer not in possible]:
        listed = ", ".join(f'"{answer}"' for answer in possible)
        metric = shown(file.objective.metric)
        yield f"yes: with [objective] metric {metric} the verdict can be {listed}, but got {shown(other[0])}"
    if file.yes and not file.search:
        yield "yes: an empty [search] compares nothing, so the question has no yes or no; leave it out"


def _opponents(file: StudyFile) -> Iterator[str]:
    if "batch" in file.baseline.also and not BATCH_KEYS & set(map(raw_key, file.search)):
        keys = ", ".join(sorted(BATCH_KEYS))
        yield f'[baseline] also: "batch" needs a search of the batch, but [search] has none of {keys}'
    if "tuned-lr" in file.baseline.also and set(map(raw_key, file.search)) <= {"lr"}:
        what = "only lr" if file.search else "nothing"
        yield f'[baseline] also: "tuned-lr" needs a search of more than lr, but [search] tunes {what}'


_RANKS = "trainer.gpus trainer.processes"
_BATCH = (
    f"trainer.context {_RANKS} hparams.batch_tokens hparams.micro_batch search.batch_tokens "
    "search.batch_fraction search.micro_batch baseline"
)
_FRACTIONS = "hparams.warmup_fraction hparams.decay_fraction search.warmup_fraction search.decay_fraction baseline"
_RULES: tuple[tuple[Callable[[StudyFile], Iterator[str]], str], ...] = (  # (rule between keys, the keys it reads)
    (_auto_micro_batch, "hparams.micro_batch baseline"),
    (_run_budget, "trainer.tokens trainer.seconds"),
    (_coordinates, f"trainer.tokens trainer.seconds trainer.model trainer.context {_RANKS} hparams search"),
    (_warmup_in_seconds, "trainer.seconds search.warmup_fraction baseline"),
    (_model, "trainer.model"),
    (_validation, "trainer.val_tokens trainer.context"),
    (_val_shards, "trainer.val trainer.corpus"),
    (_vocabulary, "trainer.corpus trainer.tokenizer"),
    (_ranks, f"{_RANKS} budget.pack"),
    (_batches, _BATCH),
    (_steps, f"trainer.tokens {_BATCH}"),
    (_schedule, _FRACTIONS),
    (_objective, "objective"),
    (_pruner, "objective budget.pruner trainer.seconds"),
    (_warm_start, "objective budget.sampler budget.warm_start"),
    (_first, "budget.first search"),
    (_trials, "budget.trials search"),
    (_grid, "budget.sampler search"),
    (_published, "budget.rules budget.sampler objective search trainer.seconds"),
    (_seeds, "confirm.seeds confirm.design trainer.seed"),
    (_looks, "confirm objective"),
    (_yes, "yes objective search"),
    (_opponents, "baseline.also search"),
)
