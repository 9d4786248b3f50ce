"""Weights & Biases as the second sink: a view of the run store that never stops or slows a run.

wandb is imported inside functions: it takes a second, and the command line must answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hpstudy.errors import MachineError
from hpstudy.files import command, to_json, write_atomic
from hpstudy.records import RunHeader, RunResult, StepRecord, as_row
from hpstudy.study import Study
from hpstudy.tracking.store import DELIVERED, RunStore, RunView, delivery
from hpstudy.tracking.wandb_files import WandbFiles
from hpstudy.tracking.wandb_receipt import missing, read_back
from hpstudy.tracking.wandb_runs import WandbRuns, end, finished_rows, in_short, wandb_process
from hpstudy.tracking.wandb_settings import Mode, drop_redirects, resolve_project, study_config

if TYPE_CHECKING:
    import wandb

MAX_ID = 128  # characters of a W&B run id
MAX_WAITING = 40_000  # tasks in the queue while rows are added; a row takes 0.7 kB of memory
MAX_SENDINGS = 9  # of one run under ids of its own, each after one that W&B lost a part of


def new_wandb_id(study: str, run_id: str) -> str:
    """A new W&B run id of study, run and a random token, so that it never matches an old run on the server."""
    tail = f"-{run_id}-{secrets.token_hex(4)}"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", study)[: MAX_ID - len("-9") - len(tail)] + tail


def group_page(root: Path, study: str) -> str:
    """The address of a study's group on W&B; empty if no run is online."""
    urls = (found["url"] for found in _deliveries(root) if found["mode"] == "online" and found["url"])
    page = next(urls, "")
    return f"{page.partition('/runs/')[0]}/groups/{study}" if page else ""


def num_offline(root: Path) -> int:
    """How many runs are in offline files alone."""
    return sum(found["mode"] == "offline" for found in _deliveries(root))


def _deliveries(root: Path) -> list[dict[str, Any]]:
    return [found for file in sorted(root.glob(f"*/{DELIVERED}")) if (found := delivery(file.parent))]


def whereabouts(root: Path, study: str) -> str:
    """Where to find a study's W&B runs: the address of their group, the command that sends offline ones, or "none"."""
    group, count = group_page(root, study), num_offline(root)
    counted = f"{count} run{'s' if count != 1 else ''}"
    sync = command("sync", study, root.parent)
    if count:
        return f"{group}, {counted} offline: {sync}" if group else f"offline, {counted}: {sync}"
    return group or "none"


def sink_for(
    study: Study, root: Path, mode: Mode, say: Callable[[str], None], *, rules: Mapping[str, str] | None = None
) -> WandbSink:
    """The sink of a study whose run folder is `root`. `rules` names the rule that proposed a run, by the run's id."""
    project, entity = resolve_project(study.project, study.entity)
    return WandbSink(
        mode=mode,
        project=project,
        entity=entity,
        directory=root,
        extra=study_config(study),
        baseline=study.baseline_run_id,
        rules=rules or {},
        say=say,
        live=mode == "online",
        meanwhile=not study.measures_speed,
    )


class WandbSink:
    """One W&B run per training, fed by a writer thread.

    `begin`, `log`, `finish`, `abandon` and `replay` put a task into a queue and return at once. The thread takes some
    thousand rows a second. If rows come faster, the queue holds MAX_WAITING tasks of them at most, about 30 MB; a run
    whose rows are left out of it falls behind, and the thread reads them from the run store as soon as it has caught
    up, at the latest when the run ends. So each row reaches W&B once, in order.

    Offline, finished runs are written from the run store by processes of their own, see `WandbFiles`.

    When W&B fails, the thread falls back from online to offline and from offline to disabled, and calls `say` with one
    line. Runs open at that time are sent by a later replay.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        project: str,
        entity: str | None,
        directory: Path,
        extra: dict[str, Any],
        say: Callable[[str], None],
        baseline: str = "",
        rules: Mapping[str, str] = MappingProxyType({}),
        live: bool = True,
        meanwhile: bool = False,
        patience: float = 20.0,
    ) -> None:
        """`directory` is the study's run folder, `extra` joins each config, `patience` is the seconds per answer.

        `baseline` is the id of the baseline's run on the search's seed. `rules` names the published rule that proposed
        a run, by the run's id; the name joins its config. `meanwhile`: offline, the runs that have finished may be
        written while others train.
        """
        self.live = live and mode != "disabled"
        """Whether steps are sent as they come; otherwise `replay` sends whole runs from the store."""
        self._hurried = False
        self._mode: Mode = mode
        self._project, self._entity, self._directory = project, entity, directory
        self._say, self._patience = say, patience
        self._runs = WandbRuns(
            project=project,
            entity=entity,
            directory=directory,
            extra=extra,
            baseline=baseline,
            rules=dict(rules),
            patience=patience,
        )
        self._files = WandbFiles(self._runs, self._on_file, self._fall_back)
        self._falling = threading.Lock()
        self._meanwhile = meanwhile and mode == "offline" and not live
        self._open: dict[str, wandb.Run] = {}  # by run id; only the thread uses it
        self._last: dict[str, int] = {}  # the last step logged, by run id; only the thread uses it
        self._behind: set[str] = set()  # runs that the queue lacks rows of; the thread does not use it
        self._told_behind = False
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if mode != "disabled":
            if dropped := drop_redirects():
                say(f"W&B: {', '.join(dropped)} would send these runs elsewhere, so it is not passed on")
            self._thread = threading.Thread(target=self._write, name="wandb-writer", daemon=True)
            self._thread.start()
            self._put_live(_import_ahead)

    @property
    def enabled(self) -> bool:
        """Whether anything is written to W&B."""
        return self._thread is not None

    def begin(self, header: RunHeader) -> None:
        """Opens a run. The caller logs all of its records, from step 1, also for a resumed run.

        A resumed run continues online after the server's last step, and offline is written again from step 1.
        """
        self._put_live(self._begin, header)

    def log(self, run_id: str, record: StepRecord) -> None:
        """Adds a row, which the run store must have. The steps of a run must rise."""
        if not self.live:
            return
        waiting = self._queue.qsize()
        if waiting >= MAX_WAITING:
            self._fall_behind(run_id)
        elif run_id not in self._behind:
            self._put(self._log, run_id, record)
        elif waiting < MAX_WAITING / 2:  # not at once, so that the run's file is read seldom
            self._catch_up_later(run_id)

    def finish(self, run_id: str, result: RunResult) -> None:
        """Writes the summary and closes the run."""
        self._catch_up_later(run_id)
        self._put_live(self._finish, run_id, result)
        if self._meanwhile:
            self._files.write(run_id, result.steps, now=False)

    def lacks(self, view: RunView) -> bool:
        """Whether W&B lacks a part of a finished run, in this mode and online."""
        return delivery(view.folder).get("mode") not in (self._mode, "online")

    def replay(self, view: RunView, *, verify: bool = False) -> None:
        """Sends what W&B lacks of a finished run from the store.

        A run that was delivered is left alone, or with `verify` compared with the server row by row.
        """
        self._put(self._replay, view, verify)

    def abandon(self, run_id: str) -> None:
        """Closes an unfinished run as preempted."""
        self._behind.discard(run_id)
        self._put_live(self._abandon, run_id)

    def drain(self, meanwhile: Callable[[], None]) -> None:
        """Waits until every task so far is done. Calls `meanwhile` several times a second."""
        done = threading.Event()
        self._put(done.set)
        while self._thread is not None and self._thread.is_alive() and not done.wait(0.2):
            meanwhile()
        self._files.drain(meanwhile)

    def close(self, timeout: float = 60.0, *, hurried: bool = False) -> None:
        """Finishes the queue and abandons open runs, within `timeout` seconds. `hurried` drops replays."""
        if self._thread is None:
            return
        self._hurried, until = hurried, time.monotonic() + timeout
        self._queue.put(None)
        self._thread.join(timeout)
        has_files = self._files.close(max(0.0, until - time.monotonic()), hurried=hurried)
        if self._thread.is_alive() or not has_files:
            self._mode = "disabled"  # the thread then reports no further failure
            self._say(self._line(f"some rows were not delivered within {timeout:g} s"))
            _end_service()

    def _fall_behind(self, run_id: str) -> None:
        self._behind.add(run_id)
        if not self._told_behind:
            self._told_behind = True
            self._say("W&B takes rows more slowly than they come; it gets the rest later, from the run store")

    def _catch_up_later(self, run_id: str) -> None:
        """Adds a task for all rows that the queue lacks of a run."""
        if run_id in self._behind:
            self._behind.remove(run_id)
            self._put(self._catch_up, run_id)

    def _put_live(self, action: Callable[..., None], *args: Any) -> None:
        if self.live:
            self._put(action, *args)

    def _put(self, action: Callable[..., None], *args: Any) -> None:
        if self._thread is not None:
            self._queue.put((action, args))

    def _write(self) -> None:
        """The thread's loop."""
        while (task := self._queue.get()) is not None:
            action, args = task
            try:
                action(*args)
            except Exception as error:
                self._degrade(error)
        for run_id in list(self._open):
            with contextlib.suppress(Exception):  # the run store has the run, and a replay sends it
                self._abandon(run_id)

    def _begin(self, header: RunHeader, *, trains: bool = True) -> None:
        while self._mode != "disabled":
            try:
                run = self._runs.open(header, self._mode, trains=trains)
            except Exception as error:
                self._degrade(error)  # and try again in the weaker mode
            else:
                self._open[header.run.run_id] = run
                self._last[header.run.run_id] = run.starting_step - 1  # a resumed one begins behind the server's last
                return

    def _log(self, run_id: str, record: StepRecord) -> None:
        self._add(run_id, record.step, as_row(record))

    def _add(self, run_id: str, step: int, row: dict[str, Any]) -> None:
        run = self._open.get(run_id)
        if run and step > self._last[run_id]:
            run.log(row, step=step)
            self._last[run_id] = step

    def _catch_up(self, run_id: str) -> None:
        """Adds the rows that the run store has and W&B lacks."""
        if run_id in self._open:
            for record in RunStore(self._directory).view(run_id).records(after=self._last[run_id]):
                self._log(run_id, record)

    def _finish(self, run_id: str, result: RunResult) -> None:
        run = self._open.pop(run_id, None)
        if run:
            end(run, result)
            lacks = self._mode == "online" and missing(self._path(run.id, run.entity), result, self._patience)
            if lacks:
                self._say(self._line(f"{run_id}: {lacks}"))
            else:
                self._mark(run_id, run.id, run.url)

    def _replay(self, view: RunView, verify: bool) -> None:
        assert view.result is not None
        if self._hurried or not (self.lacks(view) or (verify and self._mode == "online")):
            return
        if self._mode == "offline":
            self._files.write(view.run_id, view.result.steps, now=True)
        elif header := self._settle(view, verify):
            self._begin(header, trains=False)
            for step, row in finished_rows(view):
                self._add(view.run_id, step, row)
            self._finish(view.run_id, view.result)

    def _settle(self, view: RunView, verify: bool) -> RunHeader | None:
        """The header of a run that the server lacks a part of, with the W&B id to send it under; None if it has all.

        Rows that the server lost before its last step cannot be sent again, nor can a run that was deleted there. Such
        a run gets a new id, which follows from the first, and the old one leaves the study's group.
        """
        assert view.result is not None
        first, marked = view.header.wandb_id, delivery(view.folder).get("mode") == "online"
        ids = [first, *(f"{first[-MAX_ID + 2 :]}-{n}" for n in range(2, MAX_SENDINGS + 1))]
        for wandb_id in ids:
            records = view.records() if verify else None
            receipt = read_back(self._path(wandb_id, self._entity), self._patience, records)
            if receipt is None and marked and wandb_id == view.wandb_id:
                continue  # deleted on W&B since, which does not take an id again
            if receipt is None or receipt.continues(view.result):
                if receipt and not receipt.lacks(view.result):
                    self._mark(view.run_id, wandb_id, receipt.remote.url)
                    return None
                return dataclasses.replace(view.header, wandb_id=wandb_id)
            receipt.set_aside(view.header.study)
        raise MachineError(f"{view.run_id}: was sent {MAX_SENDINGS} times, and W&B kept a part each time")

    def _path(self, wandb_id: str, entity: str | None) -> str:
        """Where wandb's public API finds a run; without an entity the login's own counts."""
        return "/".join(part for part in (entity, self._project, wandb_id) if part)

    def _mark(self, run_id: str, wandb_id: str, url: str | None) -> None:
        self._write_mark(run_id, {"mode": self._mode, "url": url, "id": wandb_id})

    def _on_file(self, run_id: str, wandb_id: str) -> None:
        self._write_mark(run_id, {"mode": "offline", "url": None, "id": wandb_id})

    def _write_mark(self, run_id: str, delivery: dict[str, str | None]) -> None:
        write_atomic(self._directory / run_id / DELIVERED, to_json(delivery))

    def _abandon(self, run_id: str) -> None:
        run = self._open.pop(run_id, None)
        if run:
            run.mark_preempting()
            run.finish(exit_code=1)

    def _degrade(self, error: Exception) -> None:
        self._fall_back(in_short(error))

    def _fall_back(self, reason: str) -> None:
        """Falls back by one mode and says so."""
        with self._falling:
            if self._mode == "disabled":
                return
            if self._mode == "online":
                self._mode, effect = "offline", f"runs continue offline in {self._directory / 'wandb'}"
            else:
                self._mode, effect = "disabled", "W&B is left out from here"
        self._open.clear()
        if "wandb" in sys.modules:
            import wandb

            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown(exit_code=1)  # after a failed init the run's id is in use until its session has ended
        self._say(self._line(f"{reason}; {effect}"))

    def _line(self, what: str) -> str:
        sync = command("sync", self._directory.name, self._directory.parent)
        return f"W&B: {what}; the run store has every step: `{sync}` sends what is missing"


def _import_ahead() -> None:
    """Imports wandb while workers start: a stop while it is imported would find no process of wandb's to end."""
    with contextlib.suppress(Exception):  # the first run says it
        import wandb  # noqa: F401


def _end_service() -> None:
    """Ends wandb's own process, which would wait half a minute for a hanging server, and delay our exit."""
    import wandb

    if process := wandb_process():  # without it the exit only takes longer
        process.kill()
        process.wait()
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1)
