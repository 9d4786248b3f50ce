"""A study file in TOML -> `Study`: found by name, read, checked, defaults filled in."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpstudy.errors import UserError, did_you_mean
from hpstudy.hparams import COORDINATES, SEARCHABLE
from hpstudy.records import SETTLING_STEPS
from hpstudy.spec import (
    ModelShape,
    TrainerSpec,
    embedding_share,
    fitting_tokenizer,
    takes_any_tokenizer,
    vocab_size,
)
from hpstudy.study import checks
from hpstudy.study.parse import read, tables
from hpstudy.study.schema import (
    FORMAT_OF_SEARCH,
    LEAST_LOOK,
    LOOKS,
    ChoicesTable,
    Confirm,
    RangeTable,
    SamplerName,
    StudyFile,
    natural_scale,
)
from hpstudy.study.study import Choices, Dimension, FloatRange, OrderedChoices, Study, Value

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEFAULT_TRIALS = 16
FIXED_SEEDS = 5  # if a study can have no race and states no seeds
_NO_SAY_IN_SEEDS: Any = {
    "part_of": True,
    "cluster": True,
    "wandb": True,
    "search": True,
    "baseline": {"overrides"},
    "budget": {"trials", "hang_seconds", "pack"},
    "confirm": {"seeds", "looks"},
}
FORMAT_OF_SEEDS = 3  # whose default scales count in derived seeds, also of later formats
FORMAT_1_SEEDS, FORMAT_1_MARGIN = (101, 102, 103, 104, 105), 0.01
MAX_BYTES = 256 * 1024  # of a study file
MOST_EMBEDDINGS = 2 / 3  # of a model's parameters, above which a smaller vocabulary is advised
MAX_PROBLEMS = 50  # that are listed; the others are counted
LOCAL = Path("studies")
PACKAGE = Path(__file__).parents[1]


def study_folders() -> list[Path]:
    """Where a study is looked up by name: the local folder, then the studies that come with hpstudy."""
    shipped = PACKAGE / "studies"  # in an installed package
    return [LOCAL, shipped if shipped.is_dir() else PACKAGE.parent / "studies"]


def load_study(name_or_path: str, *, version: int | None = None) -> Study:
    """Reads and validates a study by name, or a path to a .toml file.

    A file that states no format has that of `version`, or the newest. Raises UserError with every problem of the file
    at once.
    """
    path = locate(name_or_path)
    return parse_study(read_text(path), name=path.stem, path=path, version=version)


def read_text(path: Path) -> str:
    """The text of a study file. Raises UserError if it is too large, is no UTF-8 or cannot be read."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path}: must have at most {MAX_BYTES:,} bytes, but has {size:,}; it is no study file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be UTF-8, but byte {error.start} is not; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def list_studies() -> list[tuple[str, str]]:
    """(name, question) of every study that can be loaded by name, sorted; for a broken file its first error."""
    paths = {path.stem: path for folder in reversed(study_folders()) for path in folder.glob("*.toml")}
    listed = []
    for name, path in sorted(paths.items()):
        try:
            listed.append((name, load_study(str(path)).question))
        except UserError as error:
            listed.append((name, _ladder_question(path) or error.problems[0]))
    return listed


def _ladder_question(path: Path) -> str | None:
    """What a ladder asks; None if the file is none."""
    with suppress(UserError):
        data = tables(read_text(path))
        if "ladder" in data and isinstance(question := data.get("question"), str):
            return question
    return None


def parse_study(text: str, *, name: str, path: Path, version: int | None = None) -> Study:
    """The study that a file's text states; one without a format has that of `version`, or the newest.

    Raises UserError with every problem of the text at once.
    """
    try:
        file, findings = read(text)
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from error
    states_format = file.format is not None
    if version is not None and not states_format:
        file = file.model_copy(update={"format": version})
    if problems := checks.problems(file, findings):
        more = [f"and {len(problems) - MAX_PROBLEMS:,} more problems"] if len(problems) > MAX_PROBLEMS else []
        raise UserError(f"{path}: {problem}" for problem in [*problems[:MAX_PROBLEMS], *more])
    study = replace(_resolve(file, name=name, path=path), states_format=states_format)
    if study.confirm.seeds is None:
        study = replace(with_seeds(study, _derived_seeds(file, study)), derives_seeds=True)
    return replace(study, warnings=tuple(_warnings(study)))


def study_name(name_or_path: str) -> str:
    """The name of the study that NAME on the command line means. Raises UserError if it is not a name."""
    is_path = name_or_path.endswith(".toml")
    name = Path(name_or_path).stem if is_path else name_or_path
    if not NAME.fullmatch(name):
        remedy = "rename the file" if is_path else "give a path that ends in .toml for a study in another folder"
        raise UserError(
            f'study "{name}": a name has at most 64 letters, digits, "-" and "_", a letter or digit first; {remedy}'
        )
    return name


def locate(name_or_path: str) -> Path:
    """The file of a study by name or path. Raises UserError if there is none."""
    name = study_name(name_or_path)
    if name_or_path.endswith(".toml"):
        paths = [Path(name_or_path)]
    else:
        paths = [folder / f"{name}.toml" for folder in study_folders()]
    for path in paths:
        if path.is_file():
            return path
    known = sorted({other.stem for path in paths for other in path.parent.glob("*.toml")})
    folders = " and ".join(dict.fromkeys(str(path.parent) for path in paths if path.parent.is_dir())) or paths[0].parent
    listed = f"known are {', '.join(known)}" if known else f"{folders} holds no study"
    raise UserError(f"{paths[0]}: no such study{did_you_mean(name, known)}; {listed}")


def _resolve(file: StudyFile, *, name: str, path: Path) -> Study:
    """The study that sound tables state, without its warnings."""
    trainer = file.trainer.model_dump()
    trainer["model"] = ModelShape(**trainer["model"])
    if trainer["confirm_val"] is None:
        trainer["confirm_val"] = file.version > 1
    micro_batches = {size for batch in checks.batches(file).values() for size in batch.micro_batches}
    space = _space(file, file.version)
    budget = file.budget.in_format(file.version)
    trials = budget.trials or _default_trials(space, budget.sampler.name)
    return Study(
        name=name,
        path=path,
        question=file.question,
        baseline_name=file.baseline.name,
        overrides=_typed(file.baseline.overrides),
        hparams=_typed(file.hparams),
        spec=TrainerSpec(**trainer, ramp_multiple=math.lcm(*micro_batches) * file.trainer.ranks),
        space=space,
        metrics=tuple(file.objective.metric),
        budget=budget.model_copy(update={"trials": trials, "first": tuple(_typed(point) for point in budget.first)}),
        confirm=_confirm(file),
        vocab_size=vocab_size(file.trainer.tokenizer),
        project=file.wandb.project,
        entity=file.wandb.entity,
        mixed=file.cluster.mixed,
        warnings=(),
        yes=tuple(file.yes),
        also=tuple(dict.fromkeys(file.baseline.also)),
        part_of=file.part_of,
        format=file.version,
    )


def _confirm(file: StudyFile) -> Confirm:
    """The table with the defaults of the file's format, save for seeds that follow from the whole study."""
    confirm = file.confirm
    if file.version == 1:
        old: dict[str, Any] = {"margin": FORMAT_1_MARGIN} | ({} if confirm.looks else {"seeds": FORMAT_1_SEEDS})
        return confirm.model_copy(update={key: value for key, value in old.items() if getattr(confirm, key) is None})
    can_race = bool(file.search) and confirm.design == "paired" and file.objective.metric == ["val/loss"]
    if confirm.looks is None and confirm.seeds is None and can_race:
        return confirm.model_copy(update={"looks": LOOKS})
    return confirm


def with_seeds(study: Study, seeds: Sequence[int]) -> Study:
    """The study on other fresh seeds."""
    return replace(study, confirm=study.confirm.model_copy(update={"seeds": tuple(seeds)}))


def _derived_seeds(file: StudyFile, study: Study) -> tuple[int, ...]:
    """Seeds of six digits that follow from the study's name and what its file states besides defaults.

    So they are the same in every version of hpstudy, and stay when a search is extended. A file may leave out its
    format since format 3: from there on the format does not count, nor what a later one changes in scales.
    """
    count = study.confirm.looks[-1] if study.confirm.looks else FIXED_SEEDS
    dumped = file.model_dump(mode="json", exclude_defaults=True, exclude=_NO_SAY_IN_SEEDS)
    stated = {key: value for key, value in dumped.items() if value != {}}
    if file.version >= FORMAT_OF_SEEDS:
        stated.pop("format", None)
    space = {key: asdict(found) for key, found in _space(file, min(file.version, FORMAT_OF_SEEDS)).items()}
    values = {**stated, "search": space, "hparams": study.hparams, "overrides": study.overrides}
    key, seeds = f"{study.name} {json.dumps(values, sort_keys=True)}", [study.spec.seed]  # the search's is not fresh
    for place in itertools.count():
        number = int.from_bytes(hashlib.sha256(f"{key} {place}".encode()).digest()[:8])
        if (seed := 100_000 + number % 900_000) not in seeds:
            seeds.append(seed)
        if len(seeds) > count:
            break
    return tuple(seeds[1:])


def _default_trials(space: dict[str, Dimension], sampler: SamplerName) -> int:
    """16; every point of a grid; the baseline alone if nothing is searched."""
    if space and sampler != "grid":
        return DEFAULT_TRIALS
    return math.prod(len(dimension.values) for dimension in space.values() if isinstance(dimension, Choices))


def _space(file: StudyFile, version: int) -> dict[str, Dimension]:
    """The searched dimensions, as format `version` has them."""
    return {key: _dimension(key, table, version) for key, table in file.search.items()}


def _dimension(key: str, table: RangeTable | ChoicesTable, version: int) -> Dimension:
    if isinstance(table, RangeTable):
        scale = table.scale or natural_scale(key, version)
        return FloatRange(low=float(table.low), high=float(table.high), scale=scale)
    is_ordered = version >= FORMAT_OF_SEARCH and SEARCHABLE[key].kind is not str
    kind = OrderedChoices if is_ordered else Choices
    return kind(values=tuple(_typed({key: value})[key] for value in table.choices))


def _typed(values: Mapping[str, Value]) -> dict[str, Value]:
    """Turns whole numbers into floats where a key's values are floats, so that `1` and `1.0` are one value."""
    return {key: float(value) if SEARCHABLE[key].kind is float else value for key, value in values.items()}


def _warnings(study: Study) -> Iterator[str]:
    spec = study.spec
    if "micro_batch" in study.space and study.metrics == ("val/loss",) and spec.tokens is not None:
        yield (
            "[search] micro_batch: changes speed and rounding only, never the loss; search it for train/tok_per_sec, "
            "for both metrics, or with a budget in seconds"
        )
    if outside := study.baseline_outside():
        value = "value to the last digit" if COORDINATES.keys() & set(outside) else "value"
        yield (
            f"[search] {', '.join(outside)}: no trial can have the baseline's {value}, so the baseline runs as phase "
            "`baseline` only and is not trial 0"
        )
    if study.budget.pack != 1:
        yield "[budget] pack: is ignored, because trials train one at a time since 0.2.0; leave it out"
    batch = study.baseline.batch_tokens
    if spec.tokens is not None and spec.evals > spec.tokens // batch:
        yield f"[trainer] evals: {spec.evals} evaluations, but the baseline has {spec.tokens // batch} steps"
    context, fitting = spec.context, fitting_tokenizer(spec.model)
    if spec.tokens is not None and (steps := spec.tokens // batch) < checks.LEAST_STEPS:
        yield (
            f"[hparams] batch_tokens: the baseline has {steps} step{'s' if steps > 1 else ''} of {batch:,} tokens, too "
            f"few to learn in; take e.g. {checks.batch_example(spec.tokens, context * spec.ranks)}"
        )
    full = 0 if spec.tokens is None else round(spec.tokens * (1 - study.baseline.batch_ramp_fraction)) // batch
    if "train/tok_per_sec" in study.metrics and spec.tokens is not None and full <= SETTLING_STEPS:
        yield (
            f"[objective] metric: a run's speed leaves out its first {SETTLING_STEPS} full batches, which may compile, "
            f"but the baseline has {full}, so its speed holds them; give [trainer] more tokens"
        )
    share = embedding_share(spec.model, study.vocab_size, context)
    if share > MOST_EMBEDDINGS and takes_any_tokenizer(spec.corpus):
        yield (
            f'[trainer] tokenizer: the embeddings of "{spec.tokenizer}" are {share:.0%} of the model\'s '
            f'{spec.model.num_params(study.vocab_size, context):,} parameters; take fewer, such as "{fitting}"'
        )
    if 0 < len(study.seeds) < LEAST_LOOK:
        yield f"[confirm] seeds: a verdict takes {LEAST_LOOK} fresh seeds, but the file states {len(study.seeds)}"
