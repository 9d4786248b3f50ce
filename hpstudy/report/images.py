"""The figures of `report.md` as SVG files, drawn by the same Plotly as the page's.

kaleido does it, with a Chrome or Chromium that is on the machine. A second drawing of each figure, as matplotlib would
need, could differ from the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import plotly.io

from hpstudy.errors import MachineError, UserError
from hpstudy.report.first_screen import FirstScreen
from hpstudy.report.sections import Section
from hpstudy.report.style import Figure

WIDTH = 760  # pixels
FOLDER = "figures"  # beside report.md


def write_images(first: FirstScreen, parts: Sequence[Section], directory: Path) -> dict[str, str]:
    """Writes the figures of a study's report; see `draw`."""
    return draw({figure.title: figure for figure in _figures(first, parts)}, directory)


def draw(figures: Mapping[str, Figure], directory: Path) -> dict[str, str]:
    """Writes figures and returns their addresses, relative to `report.md` in the directory, by title.

    Raises UserError without kaleido, MachineError if no browser draws them.
    """
    if find_spec("kaleido") is None:
        raise UserError("--figures: kaleido is not installed here; it comes with: pip install 'hpstudy[figures]'")
    names = {title: f"{FOLDER}/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.svg" for title in figures}
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        plotly.io.write_images(
            fig=[figure.plot for figure in figures.values()],
            file=[directory / name for name in names.values()],
            width=WIDTH,
        )
    except Exception as error:
        raise MachineError(
            f"{directory / FOLDER}: kaleido cannot draw the figures ({(str(error) or repr(error)).splitlines()[0]}); "
            "install Chrome or Chromium, or leave out --figures"
        ) from error
    return names


def _figures(first: FirstScreen, parts: Sequence[Section]) -> Iterator[Figure]:
    yield first.tabs[0][1]
    if first.differences:
        yield first.differences
    for part in parts:
        if part.id in ("hyperparameters", "search"):
            yield from part.figures
