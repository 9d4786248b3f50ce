"""Optuna's journal on disk: opened, created, or repaired after a kill.

Every event follows from the study file and the run store. So a damaged last event may be cut off: the trial is proposed
again, or its result told again. A damaged event between intact ones is refused, with its line.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
    JournalStorage,
)
from optuna.trial import FrozenTrial

from hpstudy.errors import MachineError, UserError
from hpstudy.search.space import distributions
from hpstudy.study import Study

Event = dict[str, Any]
"""One line of the journal."""


def open_journal(study: Study, storage: Path, *, read_only: bool) -> tuple[optuna.Study, str | None]:
    """Opens or creates the study's journal. Returns the study, and a line on what was repaired, or None.

    With `read_only` the study holds the intact events in memory, and nothing is written.
    Raises UserError if the journal's trials were proposed from another space, MachineError if it is damaged before its
    last event, or cannot be read or written.
    """
    repaired = None
    if not read_only and storage.is_symlink():
        raise MachineError(
            f"{storage}: is a link, through which another file would be changed; put the file itself here"
        )
    with accessing(storage):
        lines = storage.read_bytes().splitlines(keepends=True) if storage.exists() else []
        events = _intact_events(study, lines)
        if any(map(_event, lines[len(events) + 1 :])):
            raise MachineError(
                f"{storage}: line {len(events) + 1}: must be an event of the study {study.name}, but is damaged; "
                "restore the file, or move it away and run the same command again: every trial is proposed again and "
                "gets the result of its run"
            )
        if read_only:
            journal = JournalStorage(_Memory(events))
        else:
            for lock in storage.parent.glob(f"{storage.name}.lock*"):
                lock.unlink()  # left by a killed process, as only the caller may write
            if len(events) < len(lines):
                os.truncate(storage, sum(map(len, lines[: len(events)])))
                repaired = f"{storage}: its last event, line {len(events) + 1}, was damaged and is computed again"
            journal = journal_on(storage)
        if not events:
            created = optuna.create_study(study_name=study.name, storage=journal, directions=study.directions)
            return created, repaired
    (only,) = journal.get_all_studies()  # the study's folder may have been renamed since
    found = optuna.load_study(study_name=only.study_name, storage=journal)
    for trial in found.get_trials(deepcopy=False)[:1]:  # all trials have the same space
        _check_space(storage, trial.distributions, distributions(study.space))
    return found, repaired


def journal_on(path: Path) -> JournalStorage:
    """Optuna's storage on a journal file. Its lock needs no symbolic links, unlike Optuna's default."""
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


@contextmanager
def accessing(storage: Path) -> Iterator[None]:
    """Turns a failed read or write of the journal into a MachineError. A half-written line is cut off next time."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{storage}: must be readable and writable, but got: {error.strerror}; what was recorded before is safe: "
            "correct that and run the same command again"
        ) from error


def _intact_events(study: Study, lines: Sequence[bytes]) -> list[Event]:
    """The events before the first one that is incomplete or that Optuna cannot replay."""
    events: list[Event] = []
    for line in lines:
        event = _event(line)
        if event is None:
            break
        events.append(event)
    if _replays(study, events):
        return events
    return events[: bisect_left(range(len(events)), True, key=lambda last: not _replays(study, events[: last + 1]))]


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _replays(study: Study, events: Sequence[Event]) -> bool:
    """Whether Optuna can replay the events, and they are of one study like this, with all trials from one space.

    Its name may differ, because a study's folder may be renamed.
    """
    if not events:
        return True
    try:
        journal = JournalStorage(_Memory(events))
        (found,) = journal.get_all_studies()
        trials = journal.get_all_trials(found._study_id, deepcopy=False)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):  # raised on damaged values
        return False
    directions = [direction.name.lower() for direction in found.directions]
    return directions == study.directions and all(
        t.distributions == trials[0].distributions and t.params.keys() == t.distributions.keys() for t in trials
    )


def in_memory(path: Path) -> BaseJournalBackend:
    """The events of any Optuna journal, but for a half-written last one.

    Raises OSError if it cannot be read, ValueError if an earlier event is damaged.
    """
    events = [_event(line) for line in path.read_bytes().splitlines(keepends=True)]
    intact = [event for event in events if event is not None]
    if None in events[:-1]:
        raise ValueError(f"line {events.index(None) + 1} is damaged")
    return _Memory(intact)


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether the trial broke a constraint. Such trials are never ranked."""
    return any(value > 0 for value in trial.constraints.values())


class _Memory(BaseJournalBackend):
    """A journal in memory."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = list(events)

    def read_logs(self, log_number_from: int) -> list[Event]:
        """The events from that number on."""
        return self._events[log_number_from:]

    def append_logs(self, logs: list[Event]) -> None:
        """Adds events."""
        self._events += logs


def _check_space(storage: Path, asked: dict[str, BaseDistribution], space: dict[str, BaseDistribution]) -> None:
    problems = [
        f"{storage}: [search] {name}: must stay as it was when the study began, but was {asked.get(name)} and is "
        f"{space.get(name)}; restore it, or copy the file under another name for another study"
        for name in sorted(asked.keys() | space.keys())
        if asked.get(name) != space.get(name)
    ]
    if problems:
        raise UserError(problems)
