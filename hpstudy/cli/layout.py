"""Tables and labelled lines that fit the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

GAP = 2  # characters between columns
LABEL = 8  # characters of a label


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading and a cell per row. Cells may have several lines."""

    heading: str
    cells: Sequence[str]
    right: bool = False

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(len(line) for cell in (self.heading, *self.cells) for line in cell.split("\n"))


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether columns fit side by side."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1) <= width


def widest(layouts: Sequence[Sequence[Column]], width: int) -> Sequence[Column]:
    """The first layout that fits, else the last one, whose cells are then cut."""
    return next((layout for layout in layouts if fits(layout, width)), layouts[-1])


def side_by_side_parts(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """As many columns at a time as fit, each time after the first one, which names the rows."""
    first, *rest = columns
    part = [first]
    for column in rest:
        if len(part) > 1 and not fits([*part, column], width):
            yield part
            part = [first]
        part.append(column)
    yield part


def as_table(columns: Sequence[Column]) -> Table:
    """The columns without lines around them. What does not fit is cut, never wrapped; the first column stays whole."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column in columns:
        side: Literal["left", "right"] = "right" if column.right else "left"
        least = None if table.columns else column.width
        table.add_column(
            column.heading, justify=side, vertical="top", no_wrap=True, overflow="ellipsis", min_width=least
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def say_fact(console: Console, label: str, text: str, *, whole: bool = False) -> None:
    """A labelled sentence, wrapped between words on a terminal; `whole` leaves a path or a command in one piece."""
    if whole or not console.is_terminal:
        console.print(f"{label:<{LABEL}} {text}", soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL)
    grid.add_column(overflow="fold")
    grid.add_row(label, text)
    console.print(grid)


def say_table(console: Console, columns: Sequence[Column]) -> None:
    """The columns below each other in as many tables as the width needs. Nothing is cut.

    What is too wide even beside the names of the rows goes beyond the width.
    """
    for part in side_by_side_parts(columns, console.width):
        table = as_table(part)
        if not fits(part, console.width):
            table.width = sum(column.width for column in part) + GAP * (len(part) - 1)
        console.print(table, soft_wrap=True)
