"""Figures over training, and of the final differences."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hpstudy.analysis.answers import Contrast, by_speed, deciding
from hpstudy.analysis.in_short import found_name, opponent, role_name, shared_digits
from hpstudy.analysis.measured import measured
from hpstudy.analysis.numbers import interval_decimals, with_sign
from hpstudy.analysis.results import StudyResults
from hpstudy.records import GLOSSARY, Outcome
from hpstudy.report.curves import ShownRuns, band, by_run, gap, spread, thin, windowed
from hpstudy.report.style import (
    ACCENT,
    ACCENT_BAND,
    FAINT,
    INK,
    INK_BAND,
    MUTED,
    PAPER,
    UNITS,
    Figure,
    apart,
    empty_plot,
    inwards,
)
from hpstudy.statistics.race import BASELINE

OTHER_DASHES = ("dot", "dashdot", "longdash")  # of candidates after the first
SETTLED = 0.25  # of a run; losses above the one reached by then are cut off
LABEL_GAP = 0.055  # share of the y-axis between two labels at the ends of curves
LABEL_WIDTH = 7.5  # pixels of a character, at most
DENSE = 100  # points of a curve beyond which its spikes would hide it
FEW = 24  # faint trials in figures that draw every step
QUANTILE = 0.995  # of a metric's values in complete runs; a log axis goes that far
HEIGHT = 370  # pixels of the first figure

Evaluated = Mapping[str, pd.DataFrame]
"""Each shown run's `evaluations`."""
XAxis = Literal["tokens", "steps", "seconds"]
X_TITLES: dict[XAxis, str] = {
    "tokens": "training tokens",
    "steps": "steps",
    "seconds": "seconds of training, evaluation excluded",
}
TOKENS = X_TITLES["tokens"]


def _line(x: Any, y: Any, name: str, style: Mapping[str, Any], unit: str = "", x_unit: str = "tokens") -> go.Scatter:
    hover = f"{html.escape(name)}<br>%{{x:.3s}} {x_unit}: %{{y:.4~g}}{unit}<extra></extra>"
    return go.Scatter(x=x, y=y, mode="lines", line=dict(style), hovertemplate=hover)


def _styles(shown: ShownRuns) -> dict[str, tuple[dict[str, Any], str]]:
    """The line of each role and the fill of its band. The most important comes last, so that it is drawn on top."""
    dashes = dict(zip(list(shown.candidates)[1:], OTHER_DASHES * len(shown.candidates), strict=False))
    return {
        **{name: ({"color": MUTED, "width": 1.6, "dash": dash}, INK_BAND) for name, dash in dashes.items()},
        BASELINE: ({"color": INK, "width": 2.2, "dash": "dash"}, INK_BAND),
        **{name: ({"color": ACCENT, "width": 2.6}, ACCENT_BAND) for name in list(shown.candidates)[:1]},
    }


def role_names(results: StudyResults, shown: ShownRuns) -> dict[str, str]:
    """What figures call each role: GPT-3, tuned or best so far, and other candidates by their id."""
    names = {name: role_name(name) for name in shown.candidates}
    names |= dict.fromkeys(list(shown.candidates)[:1], found_name(results))
    return {BASELINE: opponent(results.study), **names}


def _roles(shown: ShownRuns) -> dict[str, tuple[str, ...]]:
    """The runs of each role, in the order of `_styles`."""
    return {name: shown.candidates.get(name, shown.baseline) for name in _styles(shown)}


def loss_curves(results: StudyResults, shown: ShownRuns, runs: Evaluated, x: XAxis = "tokens") -> Figure:
    """Validation loss during training: the sides with bands over their seeds, in front of the search's trials."""
    plot = empty_plot(X_TITLES[x], UNITS["val_loss"], height=HEIGHT)
    names, unit = role_names(results, shown), "s" if x == "seconds" else x
    ends_of_search = results.trials.set_index(results.trials["run_id"].astype("str"))["outcome"]
    for name in (name for name in shown.faint if name in runs):
        style = {"color": FAINT, "width": 1.0}
        outcome, evals = ends_of_search[name], runs[name]
        if outcome != Outcome.COMPLETE:
            style["dash"] = "dot"
        label = name if outcome == Outcome.COMPLETE else f"{name} ({'unfinished' if pd.isna(outcome) else outcome})"
        plot.add_trace(_line(*thin(evals[x], evals["loss"]), label, style, " nats", unit))
    means: dict[str, pd.DataFrame] = {}
    for role, members in _roles(shown).items():
        if not (there := [runs[name] for name in members if name in runs]):
            continue
        mean = band(there)
        mean = mean[np.isfinite(mean["mean"])]
        if not len(mean):
            continue
        means[role], (line, fill) = mean, _styles(shown)[role]
        if len(there) > 1:
            sd = mean["sd"].fillna(0.0)
            plot.add_trace(area(mean[x], mean["mean"] - sd, mean["mean"] + sd, fill))
        plot.add_trace(_line(mean[x].to_numpy(), mean["mean"].to_numpy(), names[role], line, " nats", unit))
    if means:
        low, high = _loss_limits(means, [runs[name]["loss"] for name in shown.faint if name in runs])
        plot.update_yaxes(range=[low, high])
        ends = {role: (float(mean.iloc[-1][x]), float(mean.iloc[-1]["mean"])) for role, mean in means.items()}
        digits = shared_digits(*(side for side in measured(results) if side))
        _label_ends(plot, {role: (*end, names[role]) for role, end in ends.items()}, (low, high), _styles(shown),
            lambda value: f"{value:.{digits}f}")  # fmt: skip
    caption = _in_front(results, shown)
    if shown.faint:
        dotted = any(ends_of_search[name] != Outcome.COMPLETE for name in shown.faint)
        count = f"{len(shown.faint)} trial{'s' if len(shown.faint) > 1 else ''}"
        caption += f" Grey: {count} of the search, one seed each"
        caption += "; dotted ones did not end complete." if dotted else "."
    return Figure(title="Validation loss", caption=caption, plot=plot, size="full")


def _in_front(results: StudyResults, shown: ShownRuns) -> str:
    if results.verdict().contrasts or len(shown.baseline) > 1:
        return "Lines and bands: mean ± s.d. over fresh seeds."
    return "In front: one seed each."


def _loss_limits(means: Mapping[str, pd.DataFrame], faint: Sequence[pd.Series]) -> tuple[float, float]:
    """The ends of a loss axis: from the lowest loss up to what both sides reach after a quarter of the run."""
    lowest = [float(mean["mean"].min()) for mean in means.values()] + [float(losses.min()) for losses in faint]
    early = [np.interp(SETTLED * m["tokens"].iloc[-1], m["tokens"], m["mean"]) for m in means.values()]
    low, high = float(np.nanmin(lowest)), float(max(early))
    pad = 0.06 * max(high - low, 1e-3)
    return low - pad, high + pad


def area(x: Any, low: Any, high: Any, fill: str) -> go.Scatter:
    """The area between two curves over `x`."""
    outline = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])
    style = {"fill": "toself", "fillcolor": fill, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip"}
    return go.Scatter(x=outline[0], y=outline[1], **style)


def _label_ends(
    plot: go.Figure,
    ends: Mapping[str, tuple[float, float, str]],
    limits: tuple[float, float],
    styles: Mapping[str, Any],
    text: Callable[[float], str],
) -> None:
    """Writes each curve's name and last value at its end, each label at least LABEL_GAP above the one below.

    `ends` holds (x, y, name) by role; `text` writes a value.
    """
    texts, ordered = {}, sorted(ends.items(), key=lambda end: end[1][1])
    places = apart([value for _, (_, value, _) in ordered], LABEL_GAP * (limits[1] - limits[0]), limits)
    for (role, (_, value, name)), at in zip(ordered, places, strict=True):
        number = text(value)
        texts[role] = f"{name} {number}"
        plot.add_annotation(
            x=1, xref="paper", y=at, text=f"{html.escape(name)} <b>{number}</b>", showarrow=False,
            xanchor="left", xshift=6, font={"color": styles[role][0]["color"], "size": 13},
        )  # fmt: skip
    plot.update_layout(margin_r=18 + int(LABEL_WIDTH * max(map(len, texts.values()))))
    plot.update_xaxes(range=[0, max(x for x, _, _ in ends.values())])


def difference_curve(results: StudyResults, shown: ShownRuns, runs: Evaluated) -> Figure:
    """Each candidate's loss less the baseline's during training, with an interval at each evaluation."""
    plot = empty_plot(TOKENS, "val loss less the baseline's (nats)", height=HEIGHT)
    trials, styles, names = results.trials, _styles(shown), role_names(results, shown)
    seeds = dict(zip(trials["run_id"].astype("str"), trials["seed"], strict=True))
    theirs = {int(seeds[name]): runs[name] for name in shown.baseline if name in runs}
    ends: dict[str, tuple[float, float, str]] = {}
    lows, highs = [0.0], [0.0]
    for role in (role for role in styles if role != BASELINE):
        ours = {int(seeds[name]): runs[name] for name in shown.candidates[role] if name in runs}
        if not (ours and theirs):
            continue
        found = gap(ours, theirs, results.study.confirm.design)
        found = found[np.isfinite(found["mean"])]
        if not len(found):
            continue
        line, fill = styles[role]
        sure = found.dropna()
        if len(sure):
            plot.add_trace(area(sure["tokens"], sure["low"], sure["high"], fill))
        plot.add_trace(_line(found["tokens"].to_numpy(), found["mean"].to_numpy(), names[role], line, " nats"))
        settled = found[found["tokens"] >= SETTLED * found["tokens"].iloc[-1]]
        lows.append(float(settled[["mean", "low"]].min().min()))
        highs.append(float(settled[["mean", "high"]].max().max()))
        ends[role] = (float(found["tokens"].iloc[-1]), float(found["mean"].iloc[-1]), names[role])
    plot.add_hline(y=0, line={"color": INK, "width": 1.6, "dash": "dash"})
    if ends:
        pad = 0.08 * max(max(highs) - min(lows), 1e-3)
        limits = min(lows) - pad, max(highs) + pad
        plot.update_yaxes(range=list(limits))
        first = results.verdict().contrasts[0]
        digits = interval_decimals(first.low, first.high)
        _label_ends(plot, ends, limits, styles, lambda value: with_sign(value, digits))
    caption = "Below the dashed line is better. Bands: 95% interval at each evaluation alone; the last one decides."
    return Figure(title="Difference to the baseline", caption=caption, plot=plot, size="full")


def speed_curve(results: StudyResults, shown: ShownRuns) -> Figure:
    """Tokens per second during training, of both sides' runs."""
    plot = empty_plot(TOKENS, UNITS["tok_per_sec"], height=HEIGHT)
    runs, names, styles = by_run(results.steps, shown.all), role_names(results, shown), _styles(shown)
    ends: dict[str, tuple[float, float, str]] = {}
    for role, members in _roles(shown).items():
        for name in (name for name in members if name in runs):
            x, y = windowed(runs[name]["tokens"], runs[name]["train/tok_per_sec"])
            plot.add_trace(_line(x, y, name, styles[role][0] | {"width": 1.6}, " tokens/s"))
        speeds = results.trials.loc[results.trials["run_id"].isin(members), "tok_per_sec"]
        if speeds.notna().any():
            ends[role] = (float(max(runs[name]["tokens"].iloc[-1] for name in members if name in runs)),
                          float(speeds.median()), names[role])  # fmt: skip
    top = max((value for _, value, _ in ends.values()), default=1.0) * 1.15
    if ends:
        _label_ends(plot, ends, (0.0, top), styles, "{:,.0f}".format)
    plot.update_yaxes(range=[0, top])
    caption = "Means of 50 windows of each run; the labels are medians over runs, which decide."
    return Figure(title="Speed", caption=caption, plot=plot, size="full")


def differences(results: StudyResults, shown: ShownRuns) -> Figure:
    """Each candidate's difference to the baseline with its interval and its pairs, beside the margin.

    Ratios if speed decides.
    """
    study, verdict = results.study, results.verdict()
    timed, contrasts = by_speed(study), verdict.contrasts
    even, margin = (1.0, 0.0) if timed else (0.0, verdict.margin)
    plot = empty_plot("", "", height=66 + 58 * len(contrasts), margin={"l": 12, "r": 12, "t": 6, "b": 30})
    found = [(c, _measured(c, timed), _pairs(results, c, timed)) for c in contrasts if c.speed or not timed]
    points = [even, *([-margin, margin] if margin else [])]
    points += [value for _, ends, pairs in found for value in (*ends, *pairs)]
    pad = 0.06 * (max(points) - min(points)) or 1.0
    first, last = min(points) - pad, max(points) + pad
    names = role_names(results, shown)
    if margin:
        plot.add_vrect(x0=-margin, x1=margin, fillcolor=INK_BAND, line_width=0, layer="below")
    plot.add_vline(x=even, line={"color": INK, "width": 1.6, "dash": "dash"})
    for row, (contrast, (value, low, high), pairs) in enumerate(found):
        colour, name = MUTED if row else ACCENT, html.escape(names[contrast.candidate])
        digits = interval_decimals(low, high)
        numbers = [f"{end:.{digits}f}" if timed else with_sign(end, digits) for end in (value, low, high)]
        text = f"<b>{numbers[0]}{'x' if timed else ' nats'}</b> [{numbers[1]}, {numbers[2]}]"
        label = f"{name} {deciding(contrast, study)}: {text}" if len(found) > 1 else text
        rings = {"size": 7, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 1.4}}
        plot.add_trace(
            go.Scatter(
                x=list(pairs), y=[-row + 0.22] * len(pairs), mode="markers", marker=rings,
                customdata=[str(seed) for seed in pairs.index],
                hovertemplate=f"seed %{{customdata}}: %{{x:.{digits + 1}f}}<extra></extra>",
            )
        )  # fmt: skip
        arms = {"array": [high - value], "arrayminus": [value - low], "color": colour, "thickness": 2.6, "width": 0}
        hover = f"{name}<br>{text}<extra></extra>"
        dot = {"x": [value], "y": [-row], "mode": "markers", "marker": {"size": 12, "color": colour}}
        plot.add_trace(go.Scatter(**dot, error_x=arms, hovertemplate=hover))
        plot.add_annotation(
            x=value, y=-row, text=label, showarrow=False, xanchor=inwards(value, first, last), yshift=-16,
            font={"color": colour, "size": 13}, bgcolor=PAPER, borderpad=1,
        )  # fmt: skip
    plot.update_xaxes(range=[first, last], nticks=7)
    plot.update_yaxes(visible=False, range=[-len(contrasts) + 0.45, 0.55])
    rings_are = "Rings: the seed pairs. " if any(len(pairs) for _, _, pairs in found) else ""
    shaded = f" Shaded: as good as the baseline, within {margin:.2g}." if margin else ""
    better = "right" if timed else "left"
    caption = (
        f"Dot and bar: mean and 95% interval. {rings_are}{better.capitalize()} of the dashed line is better.{shaded}"
    )
    title = "Speed over the baseline's" if timed else "Difference to the baseline (nats of val loss)"
    return Figure(title=title, caption=caption, plot=plot, size="full")


def _measured(c: Contrast, timed: bool) -> tuple[float, float, float]:
    if timed and c.speed:
        return c.speed.ratio, c.speed.low, c.speed.high
    return c.difference, c.low, c.high


def _pairs(results: StudyResults, c: Contrast, timed: bool) -> pd.Series[float]:
    """Each shared seed's difference, or its ratio of speeds; empty if the seeds are not shared."""
    ours, theirs = results.fresh.sides(c.candidate, results.fresh.speeds if timed else None)
    if c.design != "paired":
        return ours[:0]
    return ours / theirs if timed else ours - theirs


def training_curves(results: StudyResults, shown: ShownRuns) -> Iterator[Figure]:
    """The metrics of a step, for the same runs with fewer faint trials."""
    steps = results.steps
    runs = by_run(steps, shown.all)
    complete = set(results.trials.loc[results.trials["outcome"] == Outcome.COMPLETE.value, "run_id"].astype("str"))
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
        ("train/lr", "Learning rate", "learning rate", "log"),
        ("train/update_to_weight", "Update to weight", "‖update‖ / ‖weights‖", "log"),
        ("train/tok_per_sec", "Speed", "tokens/s", "linear"),
    ):
        plot = empty_plot(TOKENS, unit, height=270)
        share, dense = metric in ("train/clipped", "train/tok_per_sec"), False
        for name, style in {**behind, **front}.items():
            x, y = (runs[name][column] for column in ("tokens", metric))
            label = name if name in complete else f"{name} (not complete)"
            dense = dense or len(x) > DENSE
            if name in front and not share and len(x) > DENSE:  # spikes behind, the mean in front
                plot.add_trace(_line(*thin(x, y), label, style | {"width": 0.6, "dash": "solid"}))
                plot.data[-1].opacity = 0.35
                plot.add_trace(_line(*windowed(x, y, DENSE), label, style))
            else:
                plot.add_trace(_line(*(windowed if share else thin)(x, y), label, style))
        drawn = [name for name in (*behind, *front) if name in complete] or [*behind, *front]
        _limit(plot, [runs[name][metric] for name in drawn], metric, scale)
        doc = next(m.doc for m in GLOSSARY.values() if m.name == metric)
        how = "; means of 50 windows" if share else "; lines are means, faint the extremes" if dense else ""
        yield Figure(title=title, caption=f"{doc}{how}", plot=plot, size="panel")


def _limit(plot: go.Figure, values: Sequence[pd.Series], metric: str, scale: str) -> None:
    """Sets the y-axis from the values of complete runs, so that a diverged one does not flatten the rest."""
    if metric == "train/clipped":
        plot.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
        return
    numbers = pd.concat(list(values)).to_numpy("float64", na_value=np.nan) if values else np.array([])
    numbers = numbers[np.isfinite(numbers)]
    if scale == "log":
        numbers = numbers[numbers > 0]
    if not len(numbers):
        return
    low, high = (float(np.quantile(numbers, q)) for q in (1 - QUANTILE, QUANTILE))
    if metric == "train/tok_per_sec":
        low = 0.0
    if scale == "log":
        low, high = np.log10(low), np.log10(high)
        plot.update_yaxes(type="log", exponentformat="power", dtick=1 if high - low > 1.5 else None, nticks=6)
    pad = 0.06 * max(high - low, 1e-3)
    plot.update_yaxes(range=[low - (pad if metric != "train/tok_per_sec" else 0), high + pad])
