"""File systems that lack something, imitated by a preloaded library that fails calls on files below a folder."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("lacking.c")


@functools.cache
def _built() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """The library, and its folder, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory()
    library = Path(folder.name) / "lacking.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return folder, library


def lacking_calls(root: Path, **errnos: int) -> dict[str, str]:
    """The variables with which a process fails calls below `root`, each with its errno; see lacking.c for the calls."""
    listed = " ".join(f"{call}={number}" for call, number in errnos.items())
    return {"LD_PRELOAD": str(_built()[1]), "LACKING_ROOT": str(root), "LACKING": listed}
