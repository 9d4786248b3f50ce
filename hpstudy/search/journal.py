"""Optuna's journal on disk: opened, made, or mended after a kill."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage

from hpstudy.errors import UserError
from hpstudy.search.space import distributions
from hpstudy.study import Study


def open_journal(study: Study, storage: Path, *, read_only: bool) -> optuna.Study:
    """The study in its journal, made where it is missing; a reader gets an empty one in memory instead.

    Raises UserError if the journal's trials were proposed from another space.
    """
    if not read_only:
        _mend(storage)
    journal = None
    if storage.exists() or not read_only:
        # Absolute: Optuna's lock is a symbolic link to this path, read from the lock's own folder.
        journal = JournalStorage(JournalFileBackend(str(storage.resolve())))
        if study.name in optuna.get_all_study_names(journal):
            found = optuna.load_study(study_name=study.name, storage=journal)
            for trial in found.get_trials(deepcopy=False)[:1]:  # all trials are asked from the same one
                _check_space(storage, trial.distributions, distributions(study.space))
            return found
    directions = [objective.direction for objective in study.objectives]
    return optuna.create_study(study_name=study.name, storage=None if read_only else journal, directions=directions)


def _mend(storage: Path) -> None:
    """Clears what a killed process leaves: the lock that nobody holds any more, and a last line cut short."""
    for lock in storage.parent.glob(f"{storage.name}.lock*"):
        lock.unlink()
    if storage.exists():
        journal = storage.read_bytes()
        if not journal.endswith(b"\n"):
            os.truncate(storage, journal.rfind(b"\n") + 1)


def _check_space(storage: Path, asked: dict[str, BaseDistribution], space: dict[str, BaseDistribution]) -> None:
    problems = [
        f"{storage}: [search] {name}: must stay as it was when the study began, but was {asked.get(name)} and is "
        f"{space.get(name)}; restore it, or copy the file to a new name to begin a new study"
        for name in sorted(asked.keys() | space.keys())
        if asked.get(name) != space.get(name)
    ]
    if problems:
        raise UserError(problems)
