"""Figures over hyperparameters and trials."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.foreseen import Foreseen
from hpstudy.analysis.in_short import opponent
from hpstudy.analysis.ranges import position
from hpstudy.analysis.results import StudyResults
from hpstudy.analysis.rules import rule_names
from hpstudy.hparams import SEARCHABLE
from hpstudy.records import Outcome
from hpstudy.report.curves import objective_column
from hpstudy.report.endings import ending, not_complete
from hpstudy.report.scales import tick_text, ticks
from hpstudy.report.style import ACCENT, FAINT, INK, MUTED, UNITS, Figure, empty_plot
from hpstudy.statistics.race import BASELINE
from hpstudy.study import Choices

if TYPE_CHECKING:
    from hpstudy.search.importance import Importance  # Optuna takes half a second to import

FEW_TRIALS = 16  # each with a tick
LEAST_ERROR = 1e-6  # nats that a logarithmic axis can show
IMPORTANCE_CAPTION = (
    "PED-ANOVA over complete trials: what sets the best tenth apart, with the middle 90% over resampled trials. A "
    "share is no effect size."
)


def hyperparameter_panels(results: StudyResults, winner: str | None) -> Iterator[Figure]:
    """One panel per searched key: its value against the objective.

    Values beyond the axis stand at its worse end as triangles, and hover shows them as they are. Trials without a
    comparable value stand there too.
    """
    study = results.study
    column, complete = objective_column(study), results.ranked()
    others, named = not_complete(results), trial_namer(results)
    if not len(complete) + len(others):
        return
    limits = shown_range(complete[column], column)
    edge = limits[1] if column == "val_loss" else limits[0]
    for key, dimension in study.space.items():
        plot = empty_plot(f"{key}{_scale_note(dimension)}", UNITS[column], height=280)
        for rows, style in (
            (complete[complete["run_id"] != winner], {"color": MUTED, "size": 7, "opacity": 0.75}),
            (complete[complete["run_id"] == winner], {"color": ACCENT, "size": 13}),
        ):
            values = rows[column].to_numpy("float64")
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in rows[key]],
                    y=np.clip(values, *limits),
                    mode="markers",
                    marker={**style, "symbol": _symbols(values, limits, column)},
                    customdata=[
                        [html.escape(named(run)), tick_text(value), value_text(true, column)]
                        for run, value, true in zip(rows["run_id"], rows[key], values, strict=True)
                    ],
                    hovertemplate=f"%{{customdata[0]}}<br>{key} %{{customdata[1]}}: %{{customdata[2]}}<extra></extra>",
                )
            )
        if len(others):
            pruned = others["outcome"] == Outcome.PRUNED.value
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in others[key]],
                    y=[edge] * len(others),
                    mode="markers",
                    marker={
                        "color": [MUTED if is_pruned else INK for is_pruned in pruned],
                        "size": 8,
                        "symbol": ["circle-open" if is_pruned else "x-thin" for is_pruned in pruned],
                        "opacity": [0.6 if is_pruned else 1.0 for is_pruned in pruned],
                        "line": {"width": 1.6, "color": [MUTED if is_pruned else INK for is_pruned in pruned]},
                    },
                    customdata=[
                        [html.escape(f"{named(row['run_id'])}: {ending(row)}"), tick_text(row[key])]
                        for row in others.to_dict("records")
                    ],
                    hovertemplate=f"%{{customdata[0]}}<br>{key} %{{customdata[1]}}<extra></extra>",
                )
            )
        if num_beyond := int((complete[column] != complete[column].clip(*limits)).sum()):
            side = "above" if column == "val_loss" else "below"
            plot.add_annotation(
                x=1, y=edge, xref="paper", xanchor="right", yshift=12 if column == "val_loss" else -12,
                text=f"{num_beyond} {side}", showarrow=False, font={"size": 11.5, "color": MUTED},
            )  # fmt: skip
        if dimension.contains(theirs := study.value(study.baseline, key)):
            at = position(dimension, theirs)
            plot.add_vline(x=at, line={"color": INK, "width": 1.4, "dash": "dash"})
        marks = ticks(dimension, most=5)
        plot.update_xaxes(
            tickangle=0,
            range=[-0.05, 1.05],
            tickvals=[position(dimension, m) for m in marks],
            ticktext=[*map(tick_text, marks)],
        )
        pad = 0.08 * (limits[1] - limits[0]) or 0.01
        plot.update_yaxes(range=[limits[0] - pad, limits[1] + 1.4 * pad])
        yield Figure(title=key, caption=SEARCHABLE[key].doc, plot=plot, size="panel")


def trial_namer(results: StudyResults) -> Callable[[object], str]:
    """Run id -> what a trial is called: its id, and the published rule that proposed it: `search-0005, step-law`."""
    rules = rule_names(results.study)
    return lambda run: f"{run}, {rules[str(run)]}" if str(run) in rules else str(run)


def _symbols(values: np.ndarray, limits: tuple[float, float], column: str) -> list[str]:
    """Circles, and triangles towards values beyond the axis."""
    beyond = "triangle-up" if column == "val_loss" else "triangle-down"
    return [beyond if value != np.clip(value, *limits) else "circle" for value in values]


def value_text(value: float, column: str) -> str:
    """A value of the objective as hover shows it."""
    return f"{value:.4f} nats" if column == "val_loss" else f"{value:,.0f} tokens/s"


def shown_range(values: pd.Series, column: str) -> tuple[float, float]:
    """The ends of the objective's axis: the best value, and one that a few bad trials do not push away."""
    if not len(values):
        return 0.0, 1.0
    sign = 1 if column == "val_loss" else -1
    lower_is_better = sign * values
    best, most = float(lower_is_better.min()), float(lower_is_better.quantile(0.85))
    worst = min(float(lower_is_better.max()), most + 0.5 * (most - best))
    low, high = sorted((sign * best, sign * worst))
    return low, high


def badness(value: float, limits: tuple[float, float], column: str) -> float:
    """0 for the best shown value, 1 for the worst one and all beyond."""
    low, high = limits
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    return share if column == "val_loss" else 1 - share


def _scale_note(dimension: Any) -> str:
    scale = None if isinstance(dimension, Choices) else dimension.scale
    return {"log": " (log)", "log1m": " (log of 1 − value)"}.get(scale or "", "")


def importance_bars(importances: Mapping[str, Importance]) -> Figure:
    """Each key's share as a dot, with the range over resampled trials."""
    keys = list(importances)[::-1]
    plot = empty_plot("share of the importance", "", height=max(170, 60 + 34 * len(keys)))
    found = [importances[key] for key in keys]
    plot.add_trace(
        go.Scatter(
            x=[each.share for each in found],
            y=keys,
            mode="markers",
            marker={"size": 10, "color": ACCENT},
            error_x={
                "array": [each.high - each.share for each in found],
                "arrayminus": [each.share - each.low for each in found],
                "color": MUTED,
                "thickness": 2,
                "width": 5,
            },
            customdata=[f"{each.share:.0%} [{each.low:.0%}, {each.high:.0%}]" for each in found],
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
    )
    plot.update_xaxes(tickformat=".0%", range=[-0.02, min(1.05, 1.1 * max(each.high for each in found))])
    plot.update_yaxes(showgrid=True, tickmode="linear", dtick=1)  # every key has its name
    return Figure(title="What mattered", caption=IMPORTANCE_CAPTION, plot=plot, size="main")


def best_so_far(results: StudyResults) -> Figure:
    """The objective of every complete trial in order of number, the best so far, and the baseline's line."""
    study, column, trials = results.study, objective_column(results.study), results.trials
    done = results.ranked().sort_values("trial")
    best = done[column].cummin() if column == "val_loss" else done[column].cummax()
    plot = empty_plot("trial", UNITS[column])
    baseline = trials.loc[trials["run_id"] == study.baseline_run_id, column].dropna()
    if column == "val_loss":
        baseline = pd.Series([results.one_seed_loss(study.baseline_run_id)]).dropna()
    low, high = shown_range(pd.concat([done[column], baseline]), column)
    low, high = min([low, *baseline]), max([high, *baseline])
    pad = 0.08 * (high - low) or 0.01
    values = done[column].to_numpy("float64")
    named, rules = trial_namer(results), rule_names(study)
    texts = [
        [html.escape(named(run)), value_text(value, column)] for run, value in zip(done["run_id"], values, strict=True)
    ]
    plot.add_trace(
        go.Scatter(
            x=done["trial"].to_numpy("int64"), y=np.clip(values, low, high), mode="markers",
            marker={"color": MUTED, "size": 7, "opacity": 0.75, "symbol": _symbols(values, (low, high), column)},
            customdata=texts,
            hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    others = not_complete(results)
    plot.add_trace(
        go.Scatter(
            x=others["trial"].to_numpy("int64"), y=[high if column == "val_loss" else low] * len(others),
            mode="markers",
            marker={"color": MUTED, "size": 8, "symbol": "x-thin", "line": {"width": 1.4, "color": MUTED}},
            customdata=[
                html.escape(f"{named(row['run_id'])}: {ending(row)}")
                for row in others.to_dict("records")
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    ruled = done[done["run_id"].isin(rules)]
    if len(ruled):
        plot.add_trace(
            go.Scatter(
                x=ruled["trial"].to_numpy("int64"), y=np.clip(ruled[column].to_numpy("float64"), low, high),
                mode="text", text=[html.escape(rules[str(run)]) for run in ruled["run_id"]],
                textposition="top center", textfont={"color": INK, "size": 11}, cliponaxis=False, hoverinfo="skip",
            )
        )  # fmt: skip
    steps = {"color": ACCENT, "width": 2.2, "shape": "hv"}
    number = done["trial"].to_numpy("int64")
    plot.add_trace(go.Scatter(x=number, y=best.to_numpy(), mode="lines", line=steps, hoverinfo="skip"))
    if len(baseline):
        plot.add_hline(y=float(baseline.iloc[0]), line={"color": INK, "width": 1.4, "dash": "dash"})
        plot.add_annotation(
            x=1, xref="paper", y=float(baseline.iloc[0]), text=opponent(study), showarrow=False,
            xanchor="right", yanchor="bottom", font={"color": INK, "size": 12.5},
        )  # fmt: skip
    plot.update_xaxes(tickformat="d", dtick=1 if len(done) + len(others) <= FEW_TRIALS else None)
    plot.update_yaxes(range=[low - pad, high + pad])
    caption = (
        "One seed each. Selection flatters the best of a search, so this curve is no result. Crosses: not complete."
        + (" Named: proposed by a published rule." if len(ruled) else "")
    )
    return Figure(title="Best so far", caption=caption, plot=plot, size="full")


def pareto_front(results: StudyResults, names: Mapping[str, str]) -> Figure:
    """Loss against speed: the search's trials with their front, and both sides on fresh seeds if they have run.

    `names` says what the baseline and the candidates are called.
    """
    done, front = (results.ranked(only_front=only).dropna(subset=["tok_per_sec"]) for only in (False, True))
    plot = empty_plot(UNITS["tok_per_sec"], UNITS["val_loss"], height=400)
    low, high = shown_range(done["val_loss"], "val_loss")
    for rows, colour, mode in ((done, FAINT, "markers"), (front, MUTED, "lines+markers")):
        plot.add_trace(
            go.Scatter(
                x=rows["tok_per_sec"].to_numpy(),
                y=np.clip(rows["val_loss"].to_numpy("float64"), low, high),
                mode=mode,
                marker={"color": colour, "size": 8},
                line={"color": colour, "shape": "vh"},
                customdata=[
                    [html.escape(str(run)), value_text(loss, "val_loss")]
                    for run, loss in rows[["run_id", "val_loss"]].itertuples(index=False)
                ],
                hovertemplate="%{customdata[0]}<br>%{x:.3s} tokens/s, %{customdata[1]}<extra></extra>",
            )
        )
    for name, shown in names.items():
        runs = results.fresh.full(name)
        loss, speed = runs["loss"].mean(), runs["tok_per_sec"].median()
        if name == BASELINE and not math.isfinite(loss):
            row = results.trials[results.trials["run_id"] == results.study.baseline_run_id]
            loss, speed = results.one_seed_loss(results.study.baseline_run_id), row["tok_per_sec"].median()
        if not (math.isfinite(loss) and math.isfinite(speed)):
            continue
        colour = INK if name == BASELINE else ACCENT
        plot.add_trace(
            go.Scatter(
                x=[speed], y=[loss], mode="markers+text", text=[f"<b>{html.escape(shown)}</b>"],
                textposition="top center", textfont={"color": colour, "size": 13}, cliponaxis=False,
                marker={"color": colour, "size": 13, "symbol": "diamond" if name == BASELINE else "circle"},
                hovertemplate=f"{html.escape(shown)}<br>%{{x:.3s}} tokens/s, %{{y:.4f}} nats<extra></extra>",
            )
        )  # fmt: skip
        low, high = min(low, loss), max(high, loss)
    pad = 0.1 * (high - low) or 0.01
    plot.update_yaxes(range=[low - pad, high + 1.6 * pad])
    caption = "Lower right is better. Line: the search's front, one seed each. Large: means over the runs of each side."
    return Figure(title="Loss against speed", caption=caption, plot=plot, size="full")


def forecast_errors(found: Foreseen) -> Figure:
    """The median error of forecasts by the share of the run that had been trained, beside its two comparisons."""
    plot = empty_plot("of the run", "median error (nats)")
    shares = [each.share for each in found.errors]
    for name, exact, colour, dash in (
        ("current loss", [each.current for each in found.errors], MUTED, "dot"),
        ("schedule-blind fit", [each.blind for each in found.errors], INK, "dash"),
        ("forecast", [each.forecast for each in found.errors], ACCENT, "solid"),
    ):
        errors = [max(error, LEAST_ERROR) for error in exact]
        plot.add_trace(
            go.Scatter(
                x=shares, y=errors, mode="lines+markers", line={"color": colour, "width": 2, "dash": dash},
                marker={"color": colour, "size": 7}, hovertemplate=f"{name}: %{{y:.4f}} nats<extra></extra>",
            )
        )  # fmt: skip
        plot.add_annotation(
            x=shares[0], y=math.log10(errors[0]), text=name, showarrow=False, xanchor="left", yanchor="bottom",
            yshift=4, font={"color": colour},
        )  # fmt: skip
    plot.update_xaxes(tickformat=".0%", tickvals=shares)
    plot.update_yaxes(type="log", dtick=1, exponentformat="none")
    caption = "Distance to the final loss, of trials that were trained to their end, with what was known at that point."
    return Figure(title="Errors of the forecasts", caption=caption, plot=plot, size="full")
