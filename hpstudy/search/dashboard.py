"""optuna-dashboard on a study's journal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import optuna_dashboard
from optuna.storages.journal import JournalFileBackend, JournalStorage


def serve(journal: Path, host: str, port: int) -> None:
    """Serves until interrupted, also while the study runs."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # the server swallows exceptions raised while it answers
    storage = JournalStorage(JournalFileBackend(str(journal.resolve())))  # absolute: see journal.py
    optuna_dashboard.run_server(storage, host=host, port=port)
