"""The warm start of a study: other studies' trials, gathered once, and kept in the run folder from then on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hpstudy.errors import HpstudyError, UserError, did_you_mean
from hpstudy.files import to_json
from hpstudy.hparams import COORDINATES, RULES, SEARCHABLE, raw_key
from hpstudy.records import Outcome, RunHeader, RunResult
from hpstudy.search.warm_start import Prior, PriorTrial, optuna_trials
from hpstudy.study import Study, Value, load_frozen
from hpstudy.study.frozen import ENVIRONMENT
from hpstudy.tracking.store import RunStore, begun_studies
from hpstudy.tracking.wandb_read import fetch_runs

WARM_START = "warm_start.json"  # in the run folder
NOTED = "warm_start_sha256"  # the key of environment.json with the hash of what is kept there
PLACE = "[budget] warm_start"
OPTUNA, WANDB = "optuna:", "wandb:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What one source gives."""

    prior: Prior
    found: int  # finished trials of the source
    outside: int  # of them, those with a value outside the study's space

    def __str__(self) -> str:
        left = f", {self.outside} outside the space are left out" if self.outside else ""
        return f"{self.prior.source}: {len(self.prior.trials)} of {self.found} finished trials{left}"


def gather(study: Study, runs: Path) -> list[Gathered]:
    """The finished trials of every source of the study's warm start; `runs` holds the studies named alone.

    Raises UserError with the problems of all sources.
    """
    found: list[Gathered] = []
    problems: list[str] = []
    for source in study.budget.warm_start:
        try:
            found.append(_of_source(study, source, _trials(study, source, runs)))
        except HpstudyError as error:
            problems += [f"{study.path}: {PLACE}: {line}" for line in str(error).splitlines()]
    if problems:
        raise UserError(problems)
    return found


def keep(store: RunStore, gathered: Sequence[Gathered]) -> None:
    """Writes the trials to the run folder, then notes their hash, after which they never change."""
    kept = [asdict(each.prior) for each in gathered]
    store.write_json(WARM_START, {"sources": kept})
    environment = store.read_json(ENVIRONMENT) or {}
    store.write_json(ENVIRONMENT, environment | {NOTED: _sha256(kept)})


def is_kept(store: RunStore) -> bool:
    """Whether the study's warm start is settled. Before that no trial has been asked."""
    begun = (store.root / WARM_START).exists() and bool(store.runs())  # also if environment.json was lost
    return begun or NOTED in (store.read_json(ENVIRONMENT) or {})


def kept(store: RunStore) -> tuple[Prior, ...]:
    """The trials in the run folder. Raises UserError unless they are as when the study began."""
    noted, found = (store.read_json(ENVIRONMENT) or {}).get(NOTED), store.read_json(WARM_START) or {}
    sources = found.get("sources")
    if noted not in (None, _sha256(sources)) or sources is None:
        raise UserError(
            f"{store.root / WARM_START}: must be as when the study began (its hash {noted}), because trials "
            "follow from it; restore it from a copy, or start again with another --runs folder"
        )
    return tuple(_PRIORS.validate_python(sources))


def _trials(study: Study, source: str, runs: Path) -> list[PriorTrial]:
    """The finished trials of a source, with the values of all keys that it searched."""
    if source.startswith(OPTUNA):
        return optuna_trials(Path(source.removeprefix(OPTUNA)))
    if source.startswith(WANDB):
        fetched, _ = fetch_runs(source.removeprefix(WANDB))
        ended = [(each.header, each.result) for each in fetched]
        searched = [header for header, _ in ended if header.run.phase == "search"]
        varied = [key for key in RULES if len({getattr(header.run.hparams, key) for header in searched}) > 1]
        converted = [key for key in COORDINATES if any(key in header.derived for header in searched)]
        raw = {raw_key(key) for key in converted}
        return _finished([*converted, *(key for key in varied if key not in raw)], ended)
    if source == study.name:
        raise UserError(f'"{source}" is this study itself; leave it out')
    if source not in (known := begun_studies(runs)):
        there = f"begun are {', '.join(known)}" if known else "none has begun there; run one first, or leave it out"
        raise UserError(f'no study "{source}" has begun in {runs}{did_you_mean(source, known)}; {there}')
    store = RunStore(runs / source)
    return _finished(list(load_frozen(store.root).space), [(view.header, view.result) for view in store.runs()])


def _finished(keys: Sequence[str], runs: Iterable[tuple[RunHeader, RunResult | None]]) -> list[PriorTrial]:
    """The trials of a search that have a loss. A diverged one counts as the worst of them."""
    ended = [(header, result) for header, result in runs if header.run.phase == "search" and result is not None]
    losses = [result.val_loss for _, result in ended if result.outcome is Outcome.COMPLETE]
    measured = [loss for loss in losses if loss is not None]
    found = []
    for header, result in ended if measured else []:
        loss = max(measured) if result.outcome is Outcome.DIVERGED else result.val_loss
        if result.outcome in (Outcome.COMPLETE, Outcome.DIVERGED) and loss is not None:
            found.append(PriorTrial(values={key: _value(header, key) for key in keys}, loss=loss))
    return found


def _value(header: RunHeader, key: str) -> Value:
    """A run's value of a searched key; a coordinate as its own study has it, of that model and budget."""
    value: Value = header.derived[key] if key in COORDINATES else getattr(header.run.hparams, key)
    return value


def _of_source(study: Study, source: str, trials: Sequence[PriorTrial]) -> Gathered:
    """The trials inside the study's space. Raises UserError if there are none, or they have other keys."""
    if not trials:
        raise UserError(f'"{source}" has no finished trial; run it first, or leave it out')
    theirs, ours = set().union(*(trial.values for trial in trials)), set(study.space)
    if theirs != ours:
        raise UserError(
            f'"{source}" must search the same keys as this study, {", ".join(study.space)}, but searches '
            f"{', '.join(sorted(theirs)) or 'none'}; leave it out, or search those"
        )
    finite = [trial for trial in trials if math.isfinite(trial.loss) and trial.values.keys() == ours]
    inside = [inner for trial in finite if (inner := _inside(study, trial)) is not None]
    if not inside:
        raise UserError(
            f'"{source}" has {len(trials)} finished trials, none of them in this study\'s space; leave it out'
        )
    prior = Prior(source=source, trials=tuple(inside))
    return Gathered(prior=prior, found=len(trials), outside=len(trials) - len(inside))


def _inside(study: Study, trial: PriorTrial) -> PriorTrial | None:
    """The trial with the values as the space spells them; None if one is outside."""
    values: dict[str, Value] = {}
    for key, dimension in study.space.items():
        value = trial.values[key]
        if isinstance(value, str) is not (SEARCHABLE[key].kind is str) or not dimension.contains(value):
            return None
        exact = dimension.nearest(value)
        values[key] = exact if isinstance(exact, str) else SEARCHABLE[key].kind(exact)
    return PriorTrial(values=values, loss=trial.loss)


_PRIORS = TypeAdapter(list[Prior])


def _sha256(sources: Any) -> str:
    return hashlib.sha256(to_json(sources).encode()).hexdigest()
