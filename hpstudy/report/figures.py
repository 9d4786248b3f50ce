"""The report's figures. Colours are named here once; the page swaps them for its dark palette."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.verdict import Verdict
from hpstudy.hparams import RULES
from hpstudy.records import GLOSSARY
from hpstudy.report.curves import Cast, band, best_first, by_run, objective_column, spread, thin, windowed
from hpstudy.report.scales import position, tick_text, ticks
from hpstudy.study import Choices, Study

INK, MUTED, FAINT, GRID, ACCENT = "#16181d", "#6a707b", "#c9cdd4", "#eceef1", "#0a63d8"
INK_BAND, ACCENT_BAND = "rgba(22,24,29,0.10)", "rgba(10,99,216,0.16)"
DARK = {
    INK: "#f1f3f6",
    MUTED: "#9aa1ad",
    FAINT: "#454b56",
    GRID: "#272b32",
    ACCENT: "#6cabff",
    INK_BAND: "rgba(241,243,246,0.14)",
    ACCENT_BAND: "rgba(108,171,255,0.20)",
}
"""Light colour -> dark colour, for everything that a figure draws."""

OTHER_DASHES = ("dot", "dashdot", "longdash")  # of candidates after the first
SETTLED = 0.25  # of a run; what lies above the loss reached by then is cut off
LABEL_GAP = 0.055  # of the y-axis, between two labels at the ends of curves
FEW = 24  # faint trials where every step is drawn
UNITS = {"val_loss": "val loss (nats)", "tok_per_sec": "speed (tokens/s)"}
TOKENS = "training tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with what it says in words; `size` is its share of the page's width."""

    title: str
    caption: str
    plot: go.Figure
    size: Literal["full", "main", "side", "half", "panel"] = "half"


def _plot(x: str, y: str, *, height: int = 300, **layout: Any) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": FAINT, "automargin": True, "title": {"standoff": 10}}
    plot = go.Figure()
    plot.update_layout(
        template="none",
        height=height,
        margin={"l": 58, "r": 18, "t": 12, "b": 46},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12.5, "color": MUTED},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
    )
    plot.update_xaxes(**axis, showgrid=False, ticks="outside", ticklen=4, tickcolor=FAINT, title_text=x, nticks=6)
    plot.update_yaxes(**axis, title_text=y, nticks=6)
    return plot.update_layout(**layout)


def _line(x: Any, y: Any, name: str, look: Mapping[str, Any], unit: str = "") -> go.Scatter:
    hover = f"{html.escape(name)}<br>%{{x:.3s}} tokens: %{{y:.4~g}}{unit}<extra></extra>"
    return go.Scatter(x=x, y=y, mode="lines", line=dict(look), hovertemplate=hover)


def _looks(cast: Cast) -> dict[str, tuple[dict[str, Any], str]]:
    """How each part is drawn: its line, and the fill of its band."""
    dashes = dict(zip(list(cast.candidates)[1:], OTHER_DASHES * len(cast.candidates), strict=False))
    return {
        **{name: ({"color": MUTED, "width": 1.6, "dash": dash}, INK_BAND) for name, dash in dashes.items()},
        "baseline": ({"color": INK, "width": 2.2, "dash": "dash"}, INK_BAND),
        **{name: ({"color": ACCENT, "width": 2.6}, ACCENT_BAND) for name in list(cast.candidates)[:1]},
    }


def _parts(cast: Cast) -> dict[str, tuple[str, ...]]:
    """The runs of each part that has a look, the most important last, so that it is drawn on top."""
    return {name: cast.candidates.get(name, cast.baseline) for name in _looks(cast)}


def loss_curves(steps: pd.DataFrame, cast: Cast) -> Figure:
    """Validation loss against tokens: bands over fresh seeds in front of the search's trials."""
    plot = _plot(TOKENS, UNITS["val_loss"], height=430)
    runs = by_run(steps, cast.all)
    for name in cast.faint:
        if name in runs:
            evals = runs[name][runs[name]["val/loss"].notna()]
            plot.add_trace(_line(*thin(evals["tokens"], evals["val/loss"]), name, {"color": FAINT, "width": 1}))
    means: dict[str, pd.DataFrame] = {}
    for part, members in _parts(cast).items():
        if not (there := [runs[name] for name in members if name in runs]):
            continue
        mean = band(there)
        mean = means[part] = mean[np.isfinite(mean["mean"])]
        line, fill = _looks(cast)[part]
        if len(there) > 1:
            x, y = _outline(mean)
            plot.add_trace(
                go.Scatter(x=x, y=y, fill="toself", fillcolor=fill, line={"width": 0}, mode="lines", hoverinfo="skip")
            )
        plot.add_trace(_line(mean["tokens"].to_numpy(), mean["mean"].to_numpy(), part, line, " nats"))
    ends = {part: mean.iloc[-1] for part, mean in means.items() if len(mean)}
    everything = [run["val/loss"].min() for run in runs.values()]
    if ends:
        low = np.nanmin(everything)
        high = max(np.interp(SETTLED * m["tokens"].iloc[-1], m["tokens"], m["mean"]) for m in means.values() if len(m))
        pad = 0.06 * max(high - low, 1e-3)
        plot.update_yaxes(range=[low - pad, high + pad])
        _label_ends(plot, ends, low - pad, high + pad, _looks(cast))
    seeds = f"mean ± s.d. over {len(cast.baseline)} fresh seeds" if len(cast.baseline) > 1 else "one seed, of the search"
    front = "candidates (lines) and baseline (dashed)" if cast.candidates else "the baseline (dashed)"
    caption = f"In front: {front}, {seeds}. Grey: {len(cast.faint)} trials of the search, from best to worst, one seed each."
    return Figure(title="Loss against tokens", caption=caption, plot=plot, size="main" if cast.candidates else "full")


def _outline(mean: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    tokens, centre, sd = (mean[column].to_numpy() for column in ("tokens", "mean", "sd"))
    sd = np.nan_to_num(sd)
    return np.concatenate([tokens, tokens[::-1]]), np.concatenate([centre - sd, (centre + sd)[::-1]])


def _label_ends(plot: go.Figure, ends: Mapping[str, pd.Series], low: float, high: float, looks: Mapping[str, Any]) -> None:
    """Names curves where they end, each label at least LABEL_GAP above the one below."""
    floor = -np.inf
    for part in sorted(ends, key=lambda part: float(ends[part]["mean"])):
        at = max(float(ends[part]["mean"]), floor + LABEL_GAP * (high - low))
        floor = at
        plot.add_annotation(
            x=1, xref="paper", y=min(at, high), text=html.escape(part), showarrow=False, xanchor="left", xshift=5,
            font={"color": looks[part][0]["color"], "size": 12.5},
        )  # fmt: skip
    plot.update_layout(margin_r=88)
    plot.update_xaxes(range=[0, max(float(end["tokens"]) for end in ends.values())])


def differences(verdict: Verdict) -> Figure:
    """Each candidate's difference to the baseline with its interval, beside the margin."""
    margin = verdict.margin
    plot = _plot("difference in val loss (nats)", "", height=430)
    plot.add_vrect(x0=-margin, x1=margin, fillcolor=INK_BAND, line_width=0, layer="below")
    plot.add_vline(x=0, line={"color": INK, "width": 1.6, "dash": "dash"})
    for row, contrast in enumerate(verdict.contrasts):
        colour = MUTED if row else ACCENT
        arms = {"array": [contrast.high - contrast.difference], "arrayminus": [contrast.difference - contrast.low]}
        label = html.escape(contrast.candidate)
        plot.add_trace(
            go.Scatter(
                x=[contrast.difference],
                y=[-row],
                mode="markers",
                marker={"size": 11, "color": colour},
                error_x=arms | {"type": "data", "color": colour, "thickness": 2, "width": 6},
                hovertemplate=f"{label}<br>{contrast.difference:+.4f} "
                f"[{contrast.low:+.4f}, {contrast.high:+.4f}]<extra></extra>",
            )
        )
        text = f"<b>{label}</b>  {contrast.answer}"
        plot.add_annotation(
            x=contrast.difference, y=-row, text=text, showarrow=False, yshift=20, font={"color": colour}
        )
    ends = [0.0, margin, -margin, *(v for c in verdict.contrasts for v in (c.low, c.high))]
    pad = 0.12 * (max(ends) - min(ends))
    plot.update_xaxes(range=[min(ends) - pad, max(ends) + pad], nticks=5)
    plot.update_yaxes(visible=False, range=[-len(verdict.contrasts) + 0.2, 0.8])
    caption = f"Dot and 95% interval on fresh seeds; left of the dashed line beats the baseline. Shaded: the margin of {margin:g} nats."
    return Figure(title="Difference to the baseline", caption=caption, plot=plot, size="side")


def hyperparameter_panels(trials: pd.DataFrame, study: Study, winner: str | None) -> Iterator[Figure]:
    """One panel per searched key: its value against the objective; diverged trials stand at the worse edge."""
    column = objective_column(study)
    complete = best_first(trials, study)
    lost = trials[(trials["phase"] == "search") & trials["outcome"].isin(["diverged", "failed", "out_of_memory"])]
    baseline = study.baseline_hparams(study.spec.tokens)
    for key, dimension in study.space.items():
        plot = _plot(f"{key}{_scale_note(dimension)}", UNITS[column], height=280)
        values, worst = complete[column], _worst_shown(complete[column], column)
        for group, colour, symbol, size in (
            (complete, MUTED, "circle", 7),
            (complete[complete["run_id"] == winner], ACCENT, "circle", 13),
        ):
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in group[key]],
                    y=group[column].clip(**{"upper" if column == "val_loss" else "lower": worst}).to_numpy("float32"),
                    mode="markers",
                    marker={"color": colour, "size": size, "symbol": symbol, "opacity": 0.75},
                    customdata=list(map(html.escape, group["run_id"].astype("str"))),
                    text=[tick_text(value) for value in group[key]],
                    hovertemplate=f"%{{customdata}}<br>{key} %{{text}}: %{{y:.4~f}}<extra></extra>",
                )
            )
        if len(lost) and len(values):
            plot.add_trace(
                go.Scatter(
                    x=[position(dimension, value) for value in lost[key]],
                    y=[worst] * len(lost),
                    mode="markers",
                    marker={"color": INK, "size": 8, "symbol": "x-thin", "line": {"width": 1.6, "color": INK}},
                    customdata=[f"{html.escape(r)}: {o}" for r, o in zip(lost["run_id"].astype("str"), lost["outcome"], strict=True)],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )  # fmt: skip
        if dimension.contains(getattr(baseline, key)):
            plot.add_vline(
                x=position(dimension, getattr(baseline, key)), line={"color": INK, "width": 1.4, "dash": "dash"}
            )
        marks = ticks(dimension)
        plot.update_xaxes(
            range=[-0.05, 1.05], tickvals=[position(dimension, m) for m in marks], ticktext=[*map(tick_text, marks)]
        )
        yield Figure(title=key, caption=RULES[key].doc, plot=plot, size="panel")


def _worst_shown(values: pd.Series, column: str) -> float:
    """The value at which an axis ends, so that a few far ones do not flatten the rest."""
    best, worst, most = (values.min(), values.max(), values.quantile(0.85)) if column == "val_loss" else (
        values.max(), values.min(), values.quantile(0.15)
    )  # fmt: skip
    edge = most + 0.5 * (most - best)
    return float(min(worst, edge) if column == "val_loss" else max(worst, edge))


def _scale_note(dimension: Any) -> str:
    scale = None if isinstance(dimension, Choices) else dimension.scale
    return {"log": " (log)", "log1m": " (log of 1 − value)"}.get(scale or "", "")


def importance_bars(importances: Mapping[str, float]) -> Figure:
    """Each key's share as a bar."""
    keys = list(reversed(importances))
    plot = _plot("share of the importance", "", height=max(170, 60 + 34 * len(keys)))
    shares = [importances[key] for key in keys]
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
    plot.update_yaxes(showgrid=False)
    caption = "PED-ANOVA over complete trials: what sets the best tenth apart. A share is no effect size, and few trials make it rough."
    return Figure(title="What mattered", caption=caption, plot=plot)


def parallel_coordinates(trials: pd.DataFrame, study: Study, winner: str | None) -> Figure:
    """Every shown trial as a line over all searched keys, on the scales of the search."""
    ranked = best_first(trials, study)
    baseline = study.baseline_hparams(study.spec.tokens)
    plot = _plot("", "", height=320, margin={"l": 40, "r": 40, "t": 20, "b": 40})
    keys = list(study.space)
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
    inside = [position(d, getattr(baseline, k)) if d.contains(getattr(baseline, k)) else None for k, d in study.space.items()]
    dashed = {"color": INK, "width": 2, "dash": "dash"}
    plot.add_trace(go.Scatter(x=list(range(len(keys))), y=inside, mode="lines+markers", line=dashed, hoverinfo="skip"))
    for at, (key, dimension) in enumerate(study.space.items()):
        plot.add_vline(x=at, line={"color": FAINT, "width": 1})
        for mark in ticks(dimension, most=5):
            text = html.escape(tick_text(mark))
            place = {"x": at, "y": position(dimension, mark), "xanchor": "left", "xshift": 3}
            plot.add_annotation(text=text, showarrow=False, font={"size": 10.5, "color": MUTED}, **place)
    plot.update_xaxes(range=[-0.05, len(keys) - 0.7], tickvals=list(range(len(keys))), ticktext=keys, showline=False)
    plot.update_yaxes(visible=False, range=[-0.06, 1.06])
    caption = f"Baseline dashed; the best {num_best} of {len(ranked)} complete trials dark, the candidate in colour."
    return Figure(title="How they go together", caption=caption, plot=plot)


def best_so_far(trials: pd.DataFrame, study: Study) -> Figure:
    """The objective of every complete trial in order of number, and the best until then."""
    column = objective_column(study)
    done = best_first(trials, study).sort_values("trial")
    best = done[column].cummin() if column == "val_loss" else done[column].cummax()
    plot = _plot("trial", UNITS[column])
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
    caption = "One seed each; the best of a search is flattered by its selection, so this curve is no result."
    return Figure(title="Best so far", caption=caption, plot=plot)


def pareto_front(trials: pd.DataFrame, study: Study) -> Figure:
    """Loss against speed, with the trials that none beats in both."""
    done = best_first(trials, study).dropna(subset=["tok_per_sec"])
    front = done[done["tok_per_sec"] > done["tok_per_sec"].cummax().shift(fill_value=-np.inf)]
    plot = _plot(UNITS["tok_per_sec"], UNITS["val_loss"])
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


def training_curves(steps: pd.DataFrame, cast: Cast) -> Iterator[Figure]:
    """What a step measured beside the loss, for the same cast with fewer faint trials."""
    runs = by_run(steps, cast.all)
    faint = [name for name in spread(list(cast.faint), FEW) if name in runs]
    looks, parts = _looks(cast), _parts(cast)
    curves = [(name, {"color": FAINT, "width": 1}) for name in faint]
    curves += [
        (name, looks[part][0] | {"width": 1.4}) for part, members in parts.items() for name in members if name in runs
    ]
    for metric, title, unit, scale in (
        ("train/grad_norm", "Gradient norm", "global norm", "log"),
        ("train/clipped", "Clipped share", "share of steps", "linear"),
        ("train/lr", "Learning rate", "learning rate", "linear"),
        ("train/update_to_weight", "Update to weight", "‖update‖ / ‖weights‖", "log"),
        ("train/tok_per_sec", "Speed", "tokens/s", "linear"),
    ):
        plot = _plot(TOKENS, unit, height=270)
        share = metric in ("train/clipped", "train/tok_per_sec")
        for name, look in curves:
            x, y = (windowed if share else thin)(runs[name]["tokens"], runs[name][metric])
            plot.add_trace(_line(x, y, name, look))
        if scale == "log":
            plot.update_yaxes(type="log", exponentformat="power", dtick=1)
        if metric == "train/clipped":
            plot.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
        if metric == "train/tok_per_sec":
            plot.update_yaxes(rangemode="tozero")
        doc = next(m.doc for m in GLOSSARY.values() if m.name == metric)
        how = "mean of 50 windows" if share else "each window's lowest and highest"
        yield Figure(title=title, caption=f"{doc[0].upper()}{doc[1:]}; {how}.", plot=plot, size="panel")


