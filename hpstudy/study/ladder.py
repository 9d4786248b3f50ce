"""A ladder's file in TOML -> `Ladder`: its rungs, its check and its target, each of which is a study file of its own.

A ladder is the same study at several sizes. Its file is a study's with a table [ladder] beside; the files of its parts
follow from it and from what smaller rungs have found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpstudy.coordinates import RunSize, batch_of
from hpstudy.errors import UserError
from hpstudy.files import write_atomic
from hpstudy.hparams import fitting_batch, raw_key
from hpstudy.spec import MODELS, ModelShape
from hpstudy.study import toml
from hpstudy.study.load import NAME, locate, parse_study, read_text, study_name
from hpstudy.study.parse import sentences, tables
from hpstudy.study.schema import FORMAT, RULE_KEYS, LadderTable, ModelTable, StudyFile, TrainerTable
from hpstudy.study.study import Choices, Study, Value

Point = Mapping[str, Value]
"""Values of the searched keys."""

TABLE = "ladder"
CHECK, TARGET = "check", "target"  # parts, after the ladder's name
PREDICTED, COPIED = "predicted", "copied"  # sides of the check, after that
LEAST_RUNGS = 2
_OF_BATCHES = {key: TrainerTable.model_fields[key].default for key in ("context", "gpus", "processes")}
_OF_SEARCHES = ("search", "baseline", "objective", "yes")  # what a study of given values leaves out


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model and the budget of one run: what differs between a ladder's parts."""

    label: str  # such as "2x64" or "300k"
    model: ModelShape
    tokens: int
    trials: int | None = None  # of its search; None: what [budget] says
    batch_tokens: int | None = None  # None: what [hparams] says, or what is searched

    @property
    def weights(self) -> int:
        """Parameters without token and position embeddings, the N of laws."""
        return self.model.num_params(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """A ladder's file."""

    name: str
    path: Path
    text: str
    table: LadderTable
    data: Mapping[str, Any]  # the rest of the file
    rungs: tuple[Size, ...]  # from small to large
    check: Size | None
    target: Size | None

    @property
    def question(self) -> str:
        """What it asks."""
        return str(self.data["question"])

    @property
    def axes(self) -> tuple[str, ...]:
        """What laws are fitted in: "N" (weights without embeddings), "D" (tokens of a run), or both.

        D alone if all rungs have one model; both if D does not follow from N.
        """
        if len({size.weights for size in self.rungs}) == 1:
            return ("D",)
        budgets: dict[int, set[int]] = {}
        for size in self.rungs:
            budgets.setdefault(size.weights, set()).add(size.tokens)
        return ("N", "D") if max(map(len, budgets.values())) > 1 else ("N",)

    def coordinates(self, size: Size) -> tuple[float, ...]:
        """The natural logs of a size on the axes."""
        return tuple(math.log({"N": size.weights, "D": size.tokens}[axis]) for axis in self.axes)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of the check that are studies of their own."""
        return (PREDICTED, COPIED, *self.table.check_rules)

    @property
    def check_seeds(self) -> tuple[int, ...]:
        """The fresh seeds of the check: the first that the file states, or that follow from its name and values."""
        assert self.check is not None
        return self.study(self.rung_text(self.check), self.part(CHECK)).seeds[: self.table.check_seeds]

    def part(self, label: str) -> str:
        """The name of the study that is a part of the ladder."""
        return f"{self.name}-{label}"

    def side_part(self, side: str) -> str:
        """The name of the study that is a side of the check."""
        return self.part(f"{CHECK}-{side}")

    def rung_text(self, size: Size, first: Sequence[Point] = (), heading: Sequence[str] = ()) -> str:
        """The file of the study at a size, which tries the points `first` before others."""
        data = self._at(size)
        if first:
            stated = data.get("budget", {})
            data["budget"] = {**stated, "first": [*stated.get("first", []), *map(dict, first)]}
        return toml.document(data, heading or [f"Rung {size.label} of the ladder {self.name}, written by hpstudy."])

    def check_text(self, size: Size, seeds: Sequence[int]) -> str:
        """The file of the check's own search, confirmed on these seeds."""
        data = self._at(size)
        data["confirm"] = self._confirm(seeds)
        return toml.document(data, [f"The search at {size.label}, the check of the ladder {self.name}."])

    def side_text(self, size: Size, side: str, values: Point, seeds: Sequence[int]) -> str:
        """The file of a study that trains given raw values at a size on these seeds and searches nothing."""
        data = {key: item for key, item in self._at(size).items() if key not in _OF_SEARCHES}
        data["question"] = f"What loss do the {side} values reach at {size.label}?"
        data["hparams"] = {**data.get("hparams", {}), **values}
        kept = {key: item for key, item in data.get("budget", {}).items() if key in ("hang_seconds", "parallel")}
        data |= {"budget": kept, "search": {}, "confirm": self._confirm(seeds)}
        return toml.document(data, [f"The {side} values at {size.label}, a side of the check of {self.name}."])

    def target_text(
        self, size: Size, first: Point, ranges: Mapping[str, Mapping[str, float]], heading: Sequence[str]
    ) -> str:
        """The file of the target's study: the predicted point first, within these ranges; other keys as they were."""
        data = {key: item for key, item in self._at(size).items() if key != "part_of"}
        data["search"] = {key: {**table, **ranges.get(key, {})} for key, table in data["search"].items()}
        data["budget"] = {**data.get("budget", {}), "first": [dict(first)]}
        data["confirm"] = {key: item for key, item in data.get("confirm", {}).items() if key != "seeds"}  # fresh ones
        return toml.document(data, heading)

    def study(self, text: str, name: str) -> Study:
        """The study that the text of a part states."""
        return parse_study(text, name=name, path=self.path)

    def _at(self, size: Size) -> dict[str, Any]:
        """The file's tables at a size."""
        data: dict[str, Any] = {"format": FORMAT, "part_of": self.name} | dict(self.data)
        shape = asdict(size.model)
        data["trainer"] = {"model": shape, **data["trainer"], "tokens": size.tokens}
        if self.table.models is not None:
            data["trainer"]["model"] = shape
        if size.trials is not None:
            data["budget"] = {**data.get("budget", {}), "trials": size.trials}
        if size.batch_tokens is not None:
            data["hparams"] = {**data.get("hparams", {}), "batch_tokens": size.batch_tokens}
        return data

    def _confirm(self, seeds: Sequence[int]) -> dict[str, Any]:
        kept = {key: item for key, item in self.data.get("confirm", {}).items() if key == "margin"}
        return {**kept, "seeds": list(seeds)}


def is_ladder(name_or_path: str) -> bool:
    """Whether the study file of that name or path has a table [ladder]. False if there is no such file."""
    with suppress(UserError):
        return TABLE in tables(read_text(locate(name_or_path)))
    return False


def load_ladder(name_or_path: str) -> Ladder:
    """Reads and validates a ladder by name, or a path to its file. Raises UserError with its problems at once."""
    path = locate(name_or_path)
    return parse_ladder(read_text(path), name=study_name(name_or_path), path=path)


def parse_ladder(text: str, *, name: str, path: Path) -> Ladder:
    """The ladder that a file's text states. Raises UserError with its problems, those of every part included."""
    try:
        data = tables(text)
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from error
    try:
        table = LadderTable.model_validate(data.pop(TABLE, {}))
    except ValidationError as error:
        raise UserError(f"{path}: {sentence}" for sentence in sentences(error, TABLE)) from error
    if problems := list(_problems(table, data)):
        raise UserError(f"{path}: [ladder] {problem}" for problem in problems)
    try:  # the shape of the rest, on which sizes depend
        StudyFile.model_validate({**data, "trainer": {"model": "gpt-2x64", **data["trainer"], "tokens": 1}})
    except ValidationError as error:
        raise UserError(f"{path}: {sentence}" for sentence in sentences(error)) from error
    context, *ranks = (data["trainer"].get(key, default) for key, default in _OF_BATCHES.items())
    unit = context * math.prod(ranks)  # tokens of the smallest batch
    ladder = Ladder(
        name=name,
        path=path,
        text=text,
        table=table,
        data=data,
        rungs=_rungs(table, data, unit),
        check=_beyond(table, data, unit, CHECK),
        target=_beyond(table, data, unit, TARGET),
    )
    found = [*_unusable(ladder), *_problems_of_parts(ladder)]
    if found:
        raise UserError(f"{path}: {problem}" for problem in dict.fromkeys(found))
    return ladder


def _problems(table: LadderTable, data: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong between the keys of [ladder], and between those and the rest of the file."""
    sections = {
        key: item for key in ("trainer", "budget", "hparams", "search") if isinstance(item := data.get(key), dict)
    }
    trainer, budget, hparams = (sections.get(key, {}) for key in ("trainer", "budget", "hparams"))
    if "trainer" not in sections:
        yield "the file needs a table [trainer] too; it holds what all rungs share, such as context"
        return
    if not sections.get("search"):
        yield "the file needs keys in [search]: a ladder fits how their best values change with size"
    if table.models is None and table.tokens is None:
        yield 'models: or tokens must list the rungs, as in `models = ["gpt-2x32", "gpt-2x64", "gpt-3x96"]`'
    if (table.tokens is None) == (table.tokens_per_parameter is None):
        yield "tokens: exactly one of tokens and tokens_per_parameter must be given; it is the budget of each rung"
    if table.models is None and table.tokens_per_parameter is not None:
        yield "tokens_per_parameter: needs models; of one model list the budgets, as in `tokens = [300_000, 600_000]`"
    if table.models is not None and "model" in trainer:
        yield "models: also [trainer] model; the rungs' models are listed here, so remove that"
    if table.models is None and "model" not in trainer:
        yield "models: missing, and so is [trainer] model; list models here, or state the one that all rungs have there"
    yield from (f"tokens: also [trainer] {key}; remove that" for key in ("tokens", "seconds") if key in trainer)
    rungs = len(table.models or table.tokens or ())
    for key, listed in (("tokens", table.tokens), ("trials", table.trials)):
        if isinstance(listed, list) and len(listed) != rungs:
            yield f"{key}: must have one number for each of the {rungs} rungs, but has {len(listed)}"
    if rungs < LEAST_RUNGS:
        yield f"tokens: a ladder has at least {LEAST_RUNGS} rungs, but got {rungs}"
    if table.trials is not None and "trials" in budget:
        yield "trials: also [budget] trials; remove one of them"
    if table.batch is not None and ("batch_tokens" in hparams or "batch_tokens" in sections.get("search", {})):
        yield "batch: batch_tokens is also stated elsewhere; remove one of them"
    for part in (CHECK, TARGET):
        model, tokens = getattr(table, part), getattr(table, f"{part}_tokens")
        if model is not None and table.models is None:
            yield f"{part}: all rungs have the same model, so state {part}_tokens alone"
        if model is None and table.models is not None and tokens is not None:
            yield f"{part}_tokens: needs {part}, the model that is trained on so many tokens"
        if model is not None and table.tokens is not None and tokens is None:
            yield f"{part}_tokens: missing; tokens lists the rungs' budgets, so state that of the {part} too"
        if tokens is not None and table.tokens_per_parameter is not None:
            yield f"{part}_tokens: also tokens_per_parameter; remove one of them"


def _rungs(table: LadderTable, data: Mapping[str, Any], unit: int) -> tuple[Size, ...]:
    listed: Sequence[ModelTable | None] = table.models or [None] * len(table.tokens or ())
    sizes = []
    for place, model in enumerate(listed):
        tokens = table.tokens[place] if table.tokens else None
        trials = table.trials[place] if isinstance(table.trials, list) else table.trials
        sizes.append((_shape(model, data), tokens, trials))
    repeated = len({shape for shape, _, _ in sizes}) < len(sizes)
    made = [_size(table, unit, shape, tokens, trials) for shape, tokens, trials in sizes]
    if repeated:
        one_model = table.models is None
        made = [
            replace(size, label=_count(size.tokens) if one_model else f"{size.label}-{_count(size.tokens)}")
            for size in made
        ]
    return tuple(made)


def _beyond(table: LadderTable, data: Mapping[str, Any], unit: int, part: str) -> Size | None:
    """The size of the check or the target; None if the file has none."""
    model, tokens = getattr(table, part), getattr(table, f"{part}_tokens")
    if model is None and tokens is None:
        return None
    trials = table.check_trials if part == CHECK else None
    size = _size(table, unit, _shape(model, data), tokens, trials)
    return replace(size, label=_count(size.tokens)) if model is None else size


def _size(table: LadderTable, unit: int, shape: ModelShape, tokens: int | None, trials: int | None) -> Size:
    budget = tokens or math.ceil((table.tokens_per_parameter or 0) * shape.num_params(0, 0))
    batch = None
    if table.batch == "step-law":
        batch = fitting_batch(budget, unit)
    elif table.batch is not None:
        batch = batch_of(table.batch, RunSize(weights=shape.num_params(0, 0), tokens=budget, batch_unit=unit))
    return Size(label=label_of(shape), model=shape, tokens=budget, trials=trials, batch_tokens=batch)


def _shape(model: ModelTable | None, data: Mapping[str, Any]) -> ModelShape:
    """A listed model, or the one of [trainer]."""
    if model is None:
        stated = data["trainer"]["model"]
        if isinstance(stated, str):
            return MODELS[stated]
        return ModelShape(**stated)
    return ModelShape(**model.model_dump())


def label_of(shape: ModelShape) -> str:
    """`125m` for GPT-3's sizes, else layers x width, as in `2x64`."""
    named = (name.removeprefix("gpt-") for name, preset in MODELS.items() if preset == shape)
    return next(named, f"{shape.layers}x{shape.width}")


def _count(tokens: int) -> str:
    """A budget for a name: `300k` or `1500k`."""
    return f"{tokens // 1000}k" if tokens % 1000 == 0 else str(tokens)


def _unusable(ladder: Ladder) -> Iterator[str]:
    """Sizes that are not in order, and names that are too long."""
    order = [(size.weights, size.tokens) for size in ladder.rungs]
    if order != sorted(set(order)):
        listed = ", ".join(size.label for size in ladder.rungs)
        yield f"[ladder] models: must differ and go from small to large, but got {listed}"
    largest = max(order)
    for part, size in ((CHECK, ladder.check), (TARGET, ladder.target)):
        if size is not None and (size.weights < largest[0] or (size.weights, size.tokens) <= largest):
            last = ladder.rungs[-1].label
            yield f"[ladder] {part}: must be larger than the largest rung, {last}, but is {size.label}"
    longest = max((ladder.part(f"{CHECK}-decay-to-zero"), *map(ladder.part, (r.label for r in ladder.rungs))), key=len)
    if not NAME.fullmatch(longest):
        yield f"{longest}: the name of a part is too long for a study; give the ladder a shorter name"


def fitted_keys(study: Study) -> tuple[str, ...]:
    """The searched keys whose values are numbers on a scale."""
    return tuple(
        key
        for key, dimension in study.space.items()
        if not isinstance(dimension, Choices) or all(isinstance(v, int | float) and v > 0 for v in dimension.values)
    )


def _problems_of_parts(ladder: Ladder) -> Iterator[str]:
    """The problems of every part's file, without its path."""
    for size in (*ladder.rungs, *filter(None, (ladder.check, ladder.target))):
        try:
            study = ladder.study(ladder.rung_text(size), ladder.part(size.label))
        except UserError as error:
            yield from (problem.removeprefix(f"{ladder.path}: ") for problem in error.problems)
        else:
            if study.metrics != ("val/loss",):
                yield f"[objective] metric: a ladder is about val/loss alone, but got {', '.join(study.metrics)}"
            searched = {raw_key(key) for key in study.space}
            for rule in ladder.table.check_rules:
                if not searched & set(RULE_KEYS[rule]):
                    about = ", ".join(RULE_KEYS[rule])
                    yield f'[ladder] check_rules: "{rule}" speaks about {about}, of which the file searches none'
            if study.confirm.looks is None and len(study.seeds) < ladder.table.check_seeds:
                stated = f"but [confirm] seeds has {len(study.seeds)}"
                yield f"[ladder] check_seeds: {ladder.table.check_seeds} seeds are to be trained, {stated}"
            if not fitted_keys(study):
                yield "[search] a ladder fits laws of numbers, but all keys are texts, or have a 0 among their choices"


def write_part(folder: Path, name: str, text: str) -> Path:
    """Writes a part's file into the ladder's folder, unless it is there, and returns its path."""
    path = folder / f"{name}.toml"
    if not path.exists():
        write_atomic(path, text)
    return path
