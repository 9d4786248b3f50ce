"""Figures over hyperparameters and trials."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.ranges import position
from hpstudy.analysis.results import StudyResults
from hpstudy.hparams import RULES
from hpstudy.records import LOST
from hpstudy.report.curves import objective_column, spread
from hpstudy.report.scales import tick_text, ticks
from hpstudy.report.style import ACCENT, FAINT, INK, MUTED, UNITS, Figure, empty_plot
from hpstudy.study import Choices

if TYPE_CHECKING:
    from hpstudy.search.importance import Importance


def hyperparameter_panels(results: StudyResults, winner: str | None) -> Iterator[Figure]:
    """One panel per searched key: its value against the objective. Diverged trials are at the worse edge."""
    trials, study = results.trials, results.study
    column, complete = objective_column(study), results.ranked()
    lost = trials[(trials["phase"] == "search") & trials["outcome"].isin(LOST)]
    baseline = study.baseline
    worst = _worst_shown(complete[column], column)
    limits = (None, worst) if column == "val_loss" else (worst, None)
    for key, dimension in study.space.items():
        plot = empty_plot(f"{key}{_scale_note(dimension)}", UNITS[column], height=280)
        for group, colour, symbol, size in (
            (complete, MUTED, "circle", 7),
            (complete[complete["run_id"] == winner], ACCENT, "circle", 13),
        ):
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in group[key]],
                    y=np.clip(group[column].to_numpy("float32"), *limits),
                    mode="markers",
                    marker={"color": colour, "size": size, "symbol": symbol, "opacity": 0.75},
                    customdata=list(map(html.escape, group["run_id"].astype("str"))),
                    text=[tick_text(value) for value in group[key]],
                    hovertemplate=f"%{{customdata}}<br>{key} %{{text}}: %{{y:.4~f}}<extra></extra>",
                )
            )
        if len(lost):
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in lost[key]],
                    y=[worst] * len(lost),
                    mode="markers",
                    marker={"color": INK, "size": 8, "symbol": "x-thin", "line": {"width": 1.6, "color": INK}},
                    customdata=[
                        html.escape(f"{run}: {outcome}") for run, outcome in lost[["run_id", "outcome"]].values
                    ],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
        if dimension.contains(getattr(baseline, key)):
            plot.add_vline(
                x=position(dimension, getattr(baseline, key)), line={"color": INK, "width": 1.4, "dash": "dash"}
            )
        marks = ticks(dimension, most=5)
        plot.update_xaxes(
            tickangle=0,
            range=[-0.05, 1.05],
            tickvals=[position(dimension, m) for m in marks],
            ticktext=[*map(tick_text, marks)],
        )
        yield Figure(title=key, caption=RULES[key].doc, plot=plot, size="panel")


def _worst_shown(values: pd.Series, column: str) -> float:
    """The end of the axis, so that a few bad values do not flatten the rest."""
    sign = 1 if column == "val_loss" else -1
    values = sign * values  # the lower, the better
    most = values.quantile(0.85)
    return sign * float(min(values.max(), most + 0.5 * (most - values.min())))


def _scale_note(dimension: Any) -> str:
    scale = None if isinstance(dimension, Choices) else dimension.scale
    return {"log": " (log)", "log1m": " (log of 1 − value)"}.get(scale or "", "")


def importance_bars(importances: Mapping[str, Importance]) -> Figure:
    """Each key's share as a bar."""
    keys = list(importances)[::-1]
    plot = empty_plot("share of the importance", "", height=max(170, 60 + 34 * len(keys)))
    shares = [importances[key].share for key in keys]
    plot.add_trace(
        go.Bar(
            x=shares,
            y=keys,
            orientation="h",
            marker={"color": [ACCENT if key == keys[-1] else FAINT for key in keys]},
            text=[f"{share:.0%}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    plot.update_xaxes(tickformat=".0%", range=[0, 1.15 * max(shares)])
    plot.update_yaxes(showgrid=False, tickmode="linear", dtick=1)  # every key has its name
    caption = (
        "PED-ANOVA over complete trials: what sets the best tenth apart. "
        "A share is no effect size, and few trials make it rough."
    )
    return Figure(title="What mattered", caption=caption, plot=plot, size="main")


def parallel_coordinates(results: StudyResults, winner: str | None) -> Figure:
    """Trials as lines over all searched keys, on the scales of the search."""
    study, ranked = results.study, results.ranked()
    baseline = study.baseline
    keys = list(study.space)
    plot = empty_plot("", "", height=320, margin={"l": 40, "r": 40, "t": 20, "b": 40})
    num_best = max(1, len(ranked) // 10)
    best, shown = set(ranked["run_id"].head(num_best)), set(spread(list(ranked["run_id"]), 100))
    groups = ((shown - best - {winner}, FAINT, 1), (best - {winner}, MUTED, 1.4), ({winner}, ACCENT, 2.6))
    for group, colour, width in groups:
        rows = ranked[ranked["run_id"].isin(group)]
        ys = [[*(position(study.space[key], row[key]) for key in keys), None] for _, row in rows.iterrows()]
        plot.add_trace(
            go.Scatter(
                x=[*range(len(keys)), None] * len(rows),
                y=[y for line in ys for y in line],
                mode="lines",
                line={"color": colour, "width": width},
                hoverinfo="skip",
            )
        )
    values = [(dimension, getattr(baseline, key)) for key, dimension in study.space.items()]
    inside = [position(dimension, value) if dimension.contains(value) else None for dimension, value in values]
    dashed = {"color": INK, "width": 2, "dash": "dash"}
    plot.add_trace(go.Scatter(x=list(range(len(keys))), y=inside, mode="lines+markers", line=dashed, hoverinfo="skip"))
    for at, dimension in enumerate(study.space.values()):
        plot.add_vline(x=at, line={"color": FAINT, "width": 1})
        for mark in ticks(dimension, most=5):
            text = html.escape(tick_text(mark))
            place = {"x": at, "y": position(dimension, mark), "xanchor": "left", "xshift": 3}
            plot.add_annotation(text=text, showarrow=False, font={"size": 10.5, "color": MUTED}, **place)
    plot.update_xaxes(range=[-0.05, len(keys) - 0.7], tickvals=list(range(len(keys))), ticktext=keys, showline=False)
    plot.update_yaxes(visible=False, range=[-0.06, 1.06])
    caption = f"Baseline dashed; the best {num_best} of {len(ranked)} complete trials dark, the candidate in colour."
    return Figure(title="How they go together", caption=caption, plot=plot, size="full", min_width=110 * len(keys))


def best_so_far(results: StudyResults) -> Figure:
    """The objective of every complete trial in order of number, and the best so far."""
    study, column = results.study, objective_column(results.study)
    done = results.ranked().sort_values("trial")
    best = done[column].cummin() if column == "val_loss" else done[column].cummax()
    plot = empty_plot("trial", UNITS[column])
    number = done["trial"].to_numpy("int64")
    dots = {"color": FAINT, "size": 6}
    plot.add_trace(
        go.Scatter(
            x=number, y=done[column].to_numpy(), mode="markers", marker=dots,
            hovertemplate="trial %{x}: %{y:.4~f}<extra></extra>",
        )
    )  # fmt: skip
    steps = {"color": ACCENT, "width": 2.2, "shape": "hv"}
    plot.add_trace(go.Scatter(x=number, y=best.to_numpy(), mode="lines", line=steps, hoverinfo="skip"))
    if len(done):
        edge, end = _worst_shown(done[column], column), float(best.iloc[-1])
        pad = 0.08 * abs(edge - end)
        plot.update_yaxes(range=sorted([edge + (pad if edge > end else -pad), end - (pad if edge > end else -pad)]))
    caption = "One seed each. Selection flatters the best of a search, so this curve is no result."
    size: Literal["half", "full"] = "half" if len(study.metrics) > 1 else "full"  # the front is beside it
    return Figure(title="Best so far", caption=caption, plot=plot, size=size)


def pareto_front(results: StudyResults) -> Figure:
    """Loss against speed, with the Pareto front."""
    done, front = (results.ranked(only_front=only).dropna(subset=["tok_per_sec"]) for only in (False, True))
    plot = empty_plot(UNITS["tok_per_sec"], UNITS["val_loss"])
    for rows, colour, mode in ((done, FAINT, "markers"), (front, ACCENT, "lines+markers")):
        plot.add_trace(
            go.Scatter(
                x=rows["tok_per_sec"].to_numpy(),
                y=rows["val_loss"].to_numpy(),
                mode=mode,
                marker={"color": colour, "size": 8},
                line={"color": colour, "shape": "vh"},
                customdata=list(map(html.escape, rows["run_id"].astype("str"))),
                hovertemplate="%{customdata}<br>%{x:.3s} tokens/s, %{y:.4~f} nats<extra></extra>",
            )
        )
    caption = "In colour the front: no other trial is both faster and lower. Lower right is better."
    return Figure(title="Loss against speed", caption=caption, plot=plot)
