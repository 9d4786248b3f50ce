"""Figures over training tokens, and of the final differences."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.answers import Verdict, by_speed, deciding
from hpstudy.records import GLOSSARY
from hpstudy.report.curves import ShownRuns, band, by_run, spread, thin, windowed
from hpstudy.report.style import (
    ACCENT,
    ACCENT_BAND,
    FAINT,
    INK,
    INK_BAND,
    MUTED,
    UNITS,
    Figure,
    empty_plot,
    interval_row,
)
from hpstudy.study import Study

OTHER_DASHES = ("dot", "dashdot", "longdash")  # of candidates after the first
SETTLED = 0.25  # of a run; losses above the one reached by then are cut off
LABEL_GAP = 0.055  # share of the y-axis between two labels at the ends of curves
LABEL_WIDTH = 7  # pixels of a character, at most
DENSE = 100  # points of a curve beyond which its spikes would hide it
FEW = 24  # faint trials in figures that draw every step
TOKENS = "training tokens"


def _line(x: Any, y: Any, name: str, style: Mapping[str, Any], unit: str = "") -> go.Scatter:
    hover = f"{html.escape(name)}<br>%{{x:.3s}} tokens: %{{y:.4~g}}{unit}<extra></extra>"
    return go.Scatter(x=x, y=y, mode="lines", line=dict(style), hovertemplate=hover)


def _styles(shown: ShownRuns) -> dict[str, tuple[dict[str, Any], str]]:
    """The line of each role and the fill of its band. The most important comes last, so that it is drawn on top."""
    dashes = dict(zip(list(shown.candidates)[1:], OTHER_DASHES * len(shown.candidates), strict=False))
    return {
        **{name: ({"color": MUTED, "width": 1.6, "dash": dash}, INK_BAND) for name, dash in dashes.items()},
        "baseline": ({"color": INK, "width": 2.2, "dash": "dash"}, INK_BAND),
        **{name: ({"color": ACCENT, "width": 2.6}, ACCENT_BAND) for name in list(shown.candidates)[:1]},
    }


def _roles(shown: ShownRuns) -> dict[str, tuple[str, ...]]:
    """The runs of each role, in the order of `_styles`."""
    return {name: shown.candidates.get(name, shown.baseline) for name in _styles(shown)}


def loss_curves(steps: pd.DataFrame, shown: ShownRuns) -> Figure:
    """Validation loss against tokens: bands over fresh seeds in front of the search's trials."""
    plot = empty_plot(TOKENS, UNITS["val_loss"], height=430)
    runs = by_run(steps, shown.all)
    for name in shown.faint:
        if name in runs:
            evals = runs[name][runs[name]["val/loss"].notna()]
            plot.add_trace(_line(*thin(evals["tokens"], evals["val/loss"]), name, {"color": FAINT, "width": 1}))
    means: dict[str, pd.DataFrame] = {}
    for role, members in _roles(shown).items():
        if not (there := [runs[name] for name in members if name in runs]):
            continue
        mean = band(there)
        mean = means[role] = mean[np.isfinite(mean["mean"])]
        line, fill = _styles(shown)[role]
        if len(there) > 1:
            x, y = _outline(mean)
            plot.add_trace(
                go.Scatter(x=x, y=y, fill="toself", fillcolor=fill, line={"width": 0}, mode="lines", hoverinfo="skip")
            )
        plot.add_trace(_line(mean["tokens"].to_numpy(), mean["mean"].to_numpy(), role, line, " nats"))
    ends = {role: mean.iloc[-1] for role, mean in means.items() if len(mean)}
    everything = [run["val/loss"].min() for run in runs.values()]
    if ends:
        low = np.nanmin(everything)
        high = max(np.interp(SETTLED * m["tokens"].iloc[-1], m["tokens"], m["mean"]) for m in means.values() if len(m))
        pad = 0.06 * max(high - low, 1e-3)
        plot.update_yaxes(range=[low - pad, high + pad])
        _label_ends(plot, ends, low - pad, high + pad, _styles(shown))
    front = "the baseline (dashed), one seed"
    if shown.candidates:
        front = "candidates (lines) and baseline (dashed), mean ± s.d. over fresh seeds"
    caption = f"In front: {front}. Grey: {len(shown.faint)} trials of the search, from best to worst, one seed each."
    return Figure(title="Loss against tokens", caption=caption, plot=plot, size="main" if shown.candidates else "full")


def _outline(mean: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    tokens, centre, sd = (mean[column].to_numpy() for column in ("tokens", "mean", "sd"))
    sd = np.nan_to_num(sd)
    return np.concatenate([tokens, tokens[::-1]]), np.concatenate([centre - sd, (centre + sd)[::-1]])


def _label_ends(
    plot: go.Figure, ends: Mapping[str, pd.Series], low: float, high: float, styles: Mapping[str, Any]
) -> None:
    """Names curves at their ends, each label at least LABEL_GAP above the one below."""
    floor = -np.inf
    for role in sorted(ends, key=lambda role: float(ends[role]["mean"])):
        at = max(float(ends[role]["mean"]), floor + LABEL_GAP * (high - low))
        floor = at
        plot.add_annotation(
            x=1, xref="paper", y=min(at, high), text=html.escape(role), showarrow=False, xanchor="left", xshift=5,
            font={"color": styles[role][0]["color"], "size": 12.5},
        )  # fmt: skip
    plot.update_layout(margin_r=16 + LABEL_WIDTH * max(map(len, ends)))
    plot.update_xaxes(range=[0, max(float(end["tokens"]) for end in ends.values())])


def differences(verdict: Verdict, study: Study) -> Figure:
    """Each candidate's difference to the baseline with its interval, beside the margin; ratios if speed decides."""
    timed = by_speed(study)
    even, margin = (1.0, 0.0) if timed else (0.0, verdict.margin)
    plot = empty_plot("tokens/s over the baseline's" if timed else "difference in val loss (nats)", "", height=430)
    if margin:
        plot.add_vrect(x0=-margin, x1=margin, fillcolor=INK_BAND, line_width=0, layer="below")
    plot.add_vline(x=even, line={"color": INK, "width": 1.6, "dash": "dash"})
    measured = [
        (c, (c.speed.ratio, c.speed.low, c.speed.high) if timed and c.speed else (c.difference, c.low, c.high))
        for c in verdict.contrasts
        if c.speed or not timed
    ]
    ends = [even, margin, -margin][: 1 if timed else 3] + [end for _, (_, *both) in measured for end in both]
    pad = 0.12 * (max(ends) - min(ends))
    first, last = min(ends) - pad, max(ends) + pad
    for row, (contrast, (value, low, high)) in enumerate(measured):
        colour, label = MUTED if row else ACCENT, html.escape(contrast.candidate)
        text, hover = (
            f"<b>{label}</b>  {deciding(contrast, study)}",
            f"{label}<br>{value:+.4f} [{low:+.4f}, {high:+.4f}]",
        )
        interval_row(plot, row, (value, low, high), (first, last), text=text, hover=hover, colour=colour)
    plot.update_xaxes(range=[first, last], nticks=5)
    plot.update_yaxes(visible=False, range=[-len(verdict.contrasts) + 0.2, 0.8])
    side = "right" if timed else "left"
    shaded = f" Shaded: the margin of {margin:.2g} nats." if margin else ""
    caption = f"Dot and 95% interval on fresh seeds; {side} of the dashed line beats the baseline.{shaded}"
    return Figure(title="Difference to the baseline", caption=caption, plot=plot, size="side")


def training_curves(steps: pd.DataFrame, shown: ShownRuns) -> Iterator[Figure]:
    """The metrics of a step, for the same runs with fewer faint trials."""
    runs = by_run(steps, shown.all)
    behind = {name: {"color": FAINT, "width": 1.0} for name in spread(list(shown.faint), FEW) if name in runs}
    front = {}
    for role, members in _roles(shown).items():
        # one seed of each role, because ten of them would hide the other side
        if name := next((name for name in members if name in runs), None):
            front[name] = _styles(shown)[role][0] | {"width": 1.6}
    for metric, title, unit, scale in (
        ("train/loss", "Training loss", "train loss (nats)", "linear"),
        ("train/grad_norm", "Gradient norm", "global norm", "log"),
        ("train/clipped", "Clipped share", "share of steps", "linear"),
        ("train/lr", "Learning rate", "learning rate", "linear"),
        ("train/update_to_weight", "Update to weight", "‖update‖ / ‖weights‖", "log"),
        ("train/tok_per_sec", "Speed", "tokens/s", "linear"),
    ):
        plot = empty_plot(TOKENS, unit, height=270)
        share = metric in ("train/clipped", "train/tok_per_sec")
        for name, style in {**behind, **front}.items():
            x, y = (runs[name][column] for column in ("tokens", metric))
            if name in front and not share and len(x) > DENSE:  # spikes behind, the mean in front
                plot.add_trace(_line(*thin(x, y), name, style | {"width": 0.6, "dash": "solid"}))
                plot.data[-1].opacity = 0.35
                plot.add_trace(_line(*windowed(x, y, DENSE), name, style))
            else:
                plot.add_trace(_line(*(windowed if share else thin)(x, y), name, style))
        if scale == "log":
            plot.update_yaxes(type="log", exponentformat="power", dtick=1)
        if metric == "train/clipped":
            plot.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
        if metric == "train/tok_per_sec":
            plot.update_yaxes(rangemode="tozero")
        doc = next(m.doc for m in GLOSSARY.values() if m.name == metric)
        how = "mean of 50 windows" if share else "lines are means of windows, faint each window's lowest and highest"
        yield Figure(title=title, caption=f"{doc[0].upper()}{doc[1:]}; {how}.", plot=plot, size="panel")
