"""Optuna behind four verbs: ask, report, should_stop, tell. The only package that imports it.

The journal is a record, never an oracle. What trial n is proposed, and whether it is stopped, is worked out in a fresh
in-memory study that holds exactly what trial n may know: trials 0..n-parallel as they ended, those between as running.
So the trials are a function of the study file alone, not of timing, workers or kills. Every event is one line of the
journal, written whole: a kill falls between events and never inside one.
"""

import logging

from hpstudy.search.sampling import num_trials
from hpstudy.search.trials import Proposal, Search, TrialState, TrialView, objective_values

# Optuna would print "A new study created in memory" at every proposal, and at GP's first one that a package is missing
# which makes it faster. Only these two are turned down, so that a program that imports hpstudy keeps the rest.
for _chatter in ("optuna.storages", "optuna._gp"):
    logging.getLogger(_chatter).setLevel(logging.ERROR)

__all__ = ["Proposal", "Search", "TrialState", "TrialView", "num_trials", "objective_values"]
