"""Finished trials of other studies, which a sampler knows before the first trial of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from hpstudy.errors import UserError
from hpstudy.search.journal import in_memory, is_infeasible
from hpstudy.study import Value

FADED = 10  # losses of its own, after which a study sees nothing of others
RANKED = 5  # losses of its own, from which on others' losses are ranks among them
SQLITE = b"SQLite format 3\x00"  # how such a file begins
PLACE = "#"  # ends a parameter of hpstudy's own journals that holds a place among choices
PREFIX = "1-"  # of a parameter of hpstudy's own journals that holds 1 - value


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorTrial:
    """A finished trial of another study."""

    values: dict[str, Value]  # keyed as in the study's space
    loss: float  # nats, as the other study measured it


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The trials that one other study gives."""

    source: str  # as the study file names it
    trials: tuple[PriorTrial, ...]


def optuna_trials(path: Path) -> list[PriorTrial]:
    """The complete trials of the only study in an Optuna journal or SQLite file, which is read and never written.

    Raises UserError if the file cannot be read, or holds other than one study that minimizes one value.
    """
    try:
        storage = _sqlite(path) if _begins_with(path, SQLITE) else JournalStorage(in_memory(path))
        studies = storage.get_all_studies()
        trials = storage.get_all_trials(studies[0]._study_id) if len(studies) == 1 else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give the path of an Optuna journal") from error
    except Exception as error:  # a damaged file makes Optuna and SQLAlchemy raise almost anything
        raise UserError(
            f"{path}: must be an Optuna journal or SQLite file, but reading it raised {type(error).__name__}: {error}; "
            "give the path of one"
        ) from error
    if len(studies) != 1:
        named = ", ".join(study.study_name for study in studies) or "none"
        raise UserError(
            f"{path}: must hold one study, but holds {named}; `optuna.copy_study` copies one into a file of its own"
        )
    if studies[0].directions != [optuna.study.StudyDirection.MINIMIZE]:
        raise UserError(f"{path}: must hold a study that minimizes one value, the loss; leave it out")
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and not is_infeasible(trial)]
    if any(name.endswith(PLACE) for trial in complete for name in trial.params):
        raise UserError(
            f"{path}: is a journal of hpstudy's own that holds places in lists of numbers; name its study instead"
        )
    return [_prior(trial) for trial in complete]


def _begins_with(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _sqlite(path: Path) -> Any:
    return optuna.storages.RDBStorage(f"sqlite:///file:{path.resolve()}?mode=ro&uri=true", skip_table_creation=True)


def _prior(trial: FrozenTrial) -> PriorTrial:
    """The trial with hpstudy's keys: "1-beta1" of its own journals becomes beta1."""
    values = {
        name.removeprefix(PREFIX): 1 - value if name.startswith(PREFIX) else value
        for name, value in trial.params.items()
    }
    return PriorTrial(values=values, loss=trial.values[0])


def faded(prior: Prior, own: Sequence[float]) -> list[PriorTrial]:
    """What the sampler still sees of another study, once this one has the losses `own`.

    Each loss of its own takes a tenth of the other's trials away, evenly from the best to the worst. Another model or
    another number of tokens has other losses: they move by the difference of the two medians or, once there are
    RANKED of its own, take the losses of the same ranks among these. On recorded runs of two models that helps
    (tests/search/test_warm_start.py).
    """
    ordered = sorted(prior.trials, key=lambda trial: trial.loss)
    losses = np.array([trial.loss for trial in ordered])
    num_kept = round(len(losses) * max(0.0, 1 - len(own) / FADED))
    if not num_kept:
        return []
    places = np.unique(np.linspace(0, len(losses) - 1, num_kept).round().astype(int))
    if len(own) < RANKED:
        level = losses + (np.median(own) - np.median(losses) if own else 0.0)
    else:
        level = np.quantile(own, (np.arange(len(losses)) + 0.5) / len(losses))
    return [replace(ordered[place], loss=float(level[place])) for place in places]
