"""Hyperparameter studies for language-model training, compared with the GPT-3 baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpstudy.analysis.frames import StudyFrames

__version__ = "0.1.0"
__all__ = ["load"]


def load(name: str, runs: str | Path = "runs") -> StudyFrames:
    """A study's runs as two DataFrames, `.trials` and `.steps`, for pandas.

    `name` is a study in the folder `runs`, or "wandb:ENTITY/PROJECT/STUDY" for the same frames from W&B.
    Raises UserError for an unknown study, MachineError when W&B's rows are not complete.
    """
    from hpstudy.analysis import frames  # pandas and pyarrow take a second to import; `import hpstudy` does not

    return frames.load(name, runs)
