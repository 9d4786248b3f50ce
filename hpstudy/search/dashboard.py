"""optuna-dashboard on a study: its journal, with what the run store knows of its trials beside it.

The page shows the journal as it grows and cannot change it, because trials are a function of the study file.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpstudy.search.space import decode
from hpstudy.study import Study

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

NOTE_SECONDS = 30.0  # for which a note is shown before it is made again
METRIC_NAMES = "study:metric_names"  # as Study.set_metric_names writes it, which warns that it is experimental
READING = frozenset({"GET", "HEAD"})
Attributes = Mapping[str, Any]


def serve(
    study: Study,
    journal: Path,
    host: str,
    port: int,
    *,
    note: Callable[[], str],
    attributes: Callable[[int], Attributes],
) -> None:
    """Serves until interrupted, also while the study runs. Raises OSError if the address is not free.

    `note` is Markdown about the study, `attributes` of a trial are shown beside its values.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # the server swallows exceptions raised while it answers
    app = only_as(host, only_reading(optuna_dashboard.wsgi(Shown(study, journal, note, attributes))))
    with make_server(host, port, app, server_class=_Server, handler_class=_Handler) as server:
        server.serve_forever()


class Shown(JournalStorage):
    """A study's journal, with names of its objectives, a note, and attributes of its trials that are in no file."""

    def __init__(
        self, study: Study, journal: Path, note: Callable[[], str], attributes: Callable[[int], Attributes]
    ) -> None:
        super().__init__(JournalFileBackend(str(journal)))
        self._study, self._note, self._attributes = study, note, attributes
        self._made: tuple[float, dict[str, Any]] | None = None

    def get_all_studies(self) -> list[FrozenStudy]:
        """The study, with its note and the names of its objectives."""
        found = super().get_all_studies()
        for frozen in found:
            frozen.system_attrs = frozen.system_attrs | self._beside()
        return found

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials, with their real values where the journal holds 1 - value, and the attributes of their runs."""
        trials = [copy.copy(trial) for trial in super().get_all_trials(study_id, deepcopy=deepcopy, states=states)]
        for trial in trials:
            values = decode(self._study.space, trial.params)
            real = {key: value for key, value in values.items() if key not in trial.params}
            trial.user_attrs = trial.user_attrs | real | dict(self._attributes(trial.number))
        return trials

    def _beside(self) -> dict[str, Any]:
        """The attributes of the study, as optuna and optuna-dashboard name them."""
        now = time.monotonic()
        if self._made is None or now - self._made[0] > NOTE_SECONDS:
            scratch = optuna.create_study(directions=self._study.directions)
            optuna_dashboard.save_note(scratch, self._note())
            note = scratch._storage.get_study_system_attrs(scratch._study_id)
            self._made = now, note | {METRIC_NAMES: list(self._study.metrics)}
        return self._made[1]


def only_reading(app: WSGIApplication) -> WSGIApplication:
    """The application without the requests that would change the study."""

    def checked(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": "hpstudy shows its studies and does not let this page change them"}).encode()]

    return checked


def only_as(host: str, app: WSGIApplication) -> WSGIApplication:
    """The application, answering only requests that name this machine in their Host header.

    Else a page on the web could reach it through a name that it lets point here (DNS rebinding).
    """
    names = {host.lower(), "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    def checked(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        asked = (urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or "").lower()
        if asked in names or _is_address(asked):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f'This server does not answer as "{asked}"; use the address that hpstudy printed.\n'.encode()]

    return checked


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""
