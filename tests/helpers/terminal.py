"""What a terminal shows of a study's progress."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from rich.console import Console

from hpstudy.cli.progress import StudyProgress
from hpstudy.study import Study

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def last_frame(study: Study, events: Callable[[StudyProgress], None]) -> str:
    """What a terminal of 100 columns shows after `events`, as lines without control codes."""
    file = io.StringIO()
    progress = StudyProgress(study, Console(file=file, force_terminal=True, width=100))
    with progress.shown():
        events(progress)
        drawn = file.tell()
    return ESCAPE.sub("", file.getvalue()[drawn:])
