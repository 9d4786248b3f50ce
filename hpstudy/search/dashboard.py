"""optuna-dashboard on a study's journal."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from hpstudy.search.journal import journal_on

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication


def serve(journal: Path, host: str, port: int) -> None:
    """Serves until interrupted, also while the study runs. Raises OSError if the address is not free."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # the server swallows exceptions raised while it answers
    app = only_as(host, optuna_dashboard.wsgi(journal_on(journal)))
    with make_server(host, port, app, server_class=_Server, handler_class=_Handler) as server:
        server.serve_forever()


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
