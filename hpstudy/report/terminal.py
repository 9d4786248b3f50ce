"""The table of a search for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from hpstudy.analysis.answers import Noise
from hpstudy.analysis.numbers import short
from hpstudy.report.leaderboard import HALFLIFE_COLUMNS, one_seed_note, signed

GAP = 2  # characters between columns
CAPTION = (
    "Losses in nats, half-lives in tokens. One seed each, and selection flatters the best of a search: only runs on "
    "fresh seeds can say whether it is better."
)


def leaderboard_table(
    frame: pd.DataFrame, title: str | None = None, width: int = 100, noise: Noise | None = None
) -> Table:
    """The result of `leaderboard` for people. Runs are rows or, if that is wider than `width`, columns.

    If columns are too wide as well, the last trials are left out. Differences that two seeds of one setting may show
    too are marked.
    """
    columns = _cells(frame, noise)
    rows = [list(row) for row in zip(*columns, strict=True)]
    if _width(columns) > width:
        rows = [[heading.replace("-\n", "-").replace("\n", " "), *cells] for heading, *cells in columns]
        while len(rows[0]) > 2 and _width(list(zip(*rows, strict=True))) > width:
            rows = [row[:-1] for row in rows]
    caption = f"{CAPTION} {one_seed_note(noise)}" if noise else CAPTION
    table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, GAP - 1, 0, 0)  # the box adds one
    for index, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if index else "left", vertical="bottom", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(GAP + max(len(line) for text in column for line in text.split("\n")) for column in columns)


def _cells(frame: pd.DataFrame, noise: Noise | None) -> list[list[str]]:
    """Each column as its heading and its cells. Outcomes are shown only if one is not complete."""
    formats: dict[str, tuple[str, Callable[[Any], str]]] = {
        "val_loss": ("val\nloss", "{:.4f}".format),
        "difference": ("difference", lambda difference: signed(difference, noise)),
        "tok_per_sec": ("tok/s", short),
        "speedup": ("speedup", "{:.2f}x".format),
        "lr": ("lr", "{:.3g}".format),
        "beta2": ("beta2", "{:.5g}".format),
        **dict.fromkeys(HALFLIFE_COLUMNS, ("half-\nlife", short)),
    }
    columns = []
    for name in frame.columns.drop("baseline"):
        heading, format_value = formats.get(name, (name.replace("_", "\n"), _cell))
        cells = ["-" if pd.isna(value) else format_value(value) for value in frame[name]]
        if name == "difference":
            cells = ["baseline" if is_it else cell for cell, is_it in zip(cells, frame["baseline"], strict=True)]
        if name != "outcome" or (frame[name] != "complete").any():
            columns.append([heading, *cells])
    return columns


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
