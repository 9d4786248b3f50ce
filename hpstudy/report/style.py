"""How figures look. Colours are named here; the page replaces them by its dark palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

INK, MUTED, FAINT, GRID, ACCENT = "#16181d", "#6a707b", "#c9cdd4", "#eceef1", "#0a63d8"
PAPER = "rgba(255,255,255,0.82)"  # behind labels
GROUND = "#ffffff"  # inside hollow marks
INK_BAND, ACCENT_BAND = "rgba(22,24,29,0.10)", "rgba(10,99,216,0.16)"
DARK = {
    INK: "#f1f3f6",
    MUTED: "#9aa1ad",
    FAINT: "#454b56",
    GRID: "#272b32",
    ACCENT: "#6cabff",
    PAPER: "rgba(17,19,23,0.82)",
    GROUND: "#111317",
    INK_BAND: "rgba(241,243,246,0.14)",
    ACCENT_BAND: "rgba(108,171,255,0.20)",
}
"""Light colour -> dark colour, for everything that a figure draws."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
UNITS = {"val_loss": "val loss (nats)", "tok_per_sec": "speed (tokens/s)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with its title and caption."""

    title: str
    caption: str
    plot: go.Figure
    size: Literal["full", "main", "side", "half", "panel"] = "half"  # share of the page's width


def empty_plot(x: str, y: str, *, height: int = 300, **layout: Any) -> go.Figure:
    """Axes with titles, in the style of all figures."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": FAINT, "automargin": True}
    titles = ({**axis, "title": {"standoff": 10, "text": text, "font": {"size": 12.5}}, "nticks": 6} for text in (x, y))
    x_axis, y_axis = titles
    made: dict[str, Any] = {
        "template": "none",
        "height": height,
        "margin": {"l": 58, "r": 18, "t": 12, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONTS, "size": 12.5, "color": MUTED},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": {**x_axis, "showgrid": False, "ticks": "outside", "ticklen": 4, "tickcolor": FAINT},
        "yaxis": y_axis,
        **layout,
    }
    return go.Figure(layout=made)  # at once, because each update of a figure takes milliseconds


def inwards(x: float, low: float, high: float) -> Literal["left", "center", "right"]:
    """How to anchor a label at `x` so that it stays within the axis from low to high."""
    share = (x - low) / (high - low) if high > low else 0.5
    return "left" if share < 0.3 else "right" if share > 0.7 else "center"


def apart(values: Sequence[float], gap: float, limits: tuple[float, float]) -> list[float]:
    """Where labels of these values stand: as near as they can within the limits, at least `gap` from each other."""
    low, high = limits
    order = sorted(range(len(values)), key=lambda place: values[place])
    found, floor = [0.0] * len(values), low
    for place in order:
        found[place] = max(values[place], floor)
        floor = found[place] + gap
    ceiling = high
    for place in reversed(order):
        found[place] = min(found[place], ceiling)
        ceiling = found[place] - gap
    return found


def interval_row(
    plot: go.Figure,
    row: int,
    value: tuple[float, float, float],
    limits: tuple[float, float],
    *,
    text: str,
    hover: str,
    colour: str,
) -> None:
    """Draws (value, low, high) as a dot with its interval in a row, with a label above it.

    `limits` are the ends of the axis; `text` and `hover` are HTML.
    """
    x, low, high = value
    arms = {"array": [high - x], "arrayminus": [x - low], "color": colour, "thickness": 2, "width": 6}
    dot = {"x": [x], "y": [-row], "mode": "markers", "marker": {"size": 11, "color": colour}}
    plot.add_trace(go.Scatter(**dot, error_x=arms, hovertemplate=f"{hover}<extra></extra>"))
    label = {"text": text, "font": {"color": colour}, "showarrow": False, "yshift": 20, "bgcolor": PAPER}
    plot.add_annotation(x=x, y=-row, xanchor=inwards(x, *limits), **label)
