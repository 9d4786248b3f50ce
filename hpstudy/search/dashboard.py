"""optuna-dashboard on a study's journal."""

from __future__ import annotations

from pathlib import Path

import optuna_dashboard
from optuna.storages.journal import JournalFileBackend, JournalStorage


def serve(journal: Path, host: str, port: int) -> None:
    """Serves until interrupted; the dashboard is a reader, so a study may run meanwhile."""
    optuna_dashboard.run_server(JournalStorage(JournalFileBackend(str(journal))), host=host, port=port)
