"""Optuna behind four verbs: ask, report, should_stop, tell. No other package imports it.

The journal only records. What trial n is proposed, and whether it is stopped, is computed in an in-memory study that
holds exactly what trial n may know: trials 0..n-parallel as they ended, and those between as running. So the trials
follow from the study file, not from timing, workers or kills. Each event is one line of the journal, so that a kill
falls between events, never inside one.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from hpstudy.search.foresight import Forecast

if TYPE_CHECKING:
    from hpstudy.search.search import Proposal, Search, TrialState, TrialView, objective_values

# Optuna would log every in-memory study, and a package that would make GP faster. Only these two loggers are silenced,
# so that a program that imports hpstudy keeps the rest.
for _logger in ("optuna.storages", "optuna._gp"):
    logging.getLogger(_logger).setLevel(logging.ERROR)

JOURNAL = "optuna.journal"  # in the study's run folder

__all__ = ["JOURNAL", "Forecast", "Proposal", "Search", "TrialState", "TrialView", "objective_values"]


def __getattr__(name: str) -> Any:
    """What needs Optuna is imported on first use: it takes half a second, and readers of run stores need none of it."""
    if name in __all__:
        return getattr(importlib.import_module("hpstudy.search.search"), name)
    raise AttributeError(f"module 'hpstudy.search' has no attribute {name!r}")
