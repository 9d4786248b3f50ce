"""Hyperparameter studies for language-model training, compared with the GPT-3 baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpstudy.analysis.results import StudyResults

__version__ = "0.2.0"
__all__ = ["load"]


def load(name: str, runs: str | Path = "runs") -> StudyResults:
    """A study's runs for pandas: `.trials`, `.steps`, `.verdict()`, `.confirmed`, `.noise`, `.halflives`.

    `name` is a study in the folder `runs`, or "wandb:ENTITY/PROJECT/STUDY" for the same tables from W&B.
    Raises UserError for an unknown study, MachineError if W&B's rows are not complete.
    """
    from hpstudy.analysis import results  # here: pandas and pyarrow take a second to import

    return results.load(name, runs)
