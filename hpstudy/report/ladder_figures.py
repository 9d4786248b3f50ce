"""Figures of a ladder: the best value of each key against size, losses and gains against compute, and the check."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from hpstudy.analysis.in_short import opponent
from hpstudy.analysis.ladder import SEARCH, LadderResults, gains
from hpstudy.analysis.ladder_trends import (
    baseline_value,
    bent,
    gain_law,
    rule_value,
    studies,
)
from hpstudy.analysis.measured import Measured, measured
from hpstudy.analysis.numbers import listed, rough, short
from hpstudy.analysis.rungs import LEVEL, OVER_RULE, Estimate, Rung, shown_key
from hpstudy.hparams import SEARCHABLE
from hpstudy.report.curve_figures import area
from hpstudy.report.scales import tick_text, ticks
from hpstudy.report.style import (
    ACCENT,
    ACCENT_BAND,
    FAINT,
    GROUND,
    INK,
    INK_BAND,
    MUTED,
    Figure,
    apart,
    empty_plot,
    interval_row,
)
from hpstudy.search.rules import PUBLISHED
from hpstudy.statistics.scaling import Law
from hpstudy.study import FloatRange, Study
from hpstudy.study.ladder import PREDICTED, Size

HEIGHT = 400  # pixels of a key's figure
POINTS = 60  # of a law's line
LABEL_GAP = 0.05  # share of the axis between two labels at its right end
LABEL_WIDTH = 6.7  # pixels of a character of those, at most
FEWEST_TICKS = math.log(7)  # width of a log axis, on which two of 1, 2 and 5 always lie
ROOM = math.log(12)  # how far laws and rules may stretch a log axis beyond what was measured
NAME_WIDTH, NARROW, ROW = 7.4, 225, 14  # pixels of a character above a plot, of a phone's plot, and of a row of names
BESIDE = 0.011  # share of the axis between the prediction at the check and what was measured
AXES = {"N": "weights without embeddings (N)", "D": "tokens of a run (D)"}
MARGIN = {"l": 58, "r": 18, "t": 46, "b": 52}
Array = NDArray[np.float64]
Scale = Literal["linear", "log", "log1m"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line over sizes with its name at the right end."""

    name: str
    number: str = ""  # behind it, in bold
    x: Sequence[float] | Array
    y: Sequence[float] | Array
    style: Mapping[str, Any]


def ladder_figures(results: LadderResults) -> dict[str, Figure]:
    """Every figure of a ladder's page, by title."""
    found = [*key_figures(results), *compute_figures(results), *check_figures(results)]
    return {figure.title: figure for figure in found}


def key_figures(results: LadderResults) -> Iterator[Figure]:
    """For each fitted key its best values against size, as far as the rungs have them."""
    known = studies(results)
    keys = list(results.laws)
    for place, key in enumerate(keys):
        wide = place == 0 and len(keys) % 2 == 1
        yield _key_figure(results, key, known, "full" if wide else "half")


def _key_figure(results: LadderResults, key: str, known: Mapping[str, Study], size: Literal["full", "half"]) -> Figure:
    ladder, dimension = results.ladder, results.rungs[-1].study.space[key]
    scale: Scale = dimension.scale if isinstance(dimension, FloatRange) else "log"
    axis = ladder.axes[0]
    at, up = _across(axis), _upwards(scale)
    beyond = [size for size in (ladder.check, ladder.target) if size is not None]
    shown = sorted((*(rung.size for rung in results.rungs), *beyond), key=lambda size: (at(size), size.tokens))
    name = shown_key(key)
    plot = empty_plot(AXES[axis], "", height=HEIGHT, margin=MARGIN)
    path = _grid(results, shown, at)
    found = [(rung, estimate) for rung in results.rungs if (estimate := rung.estimate(key)) is not None]
    ahead = {each.label: results.estimate(key, each) for each in shown}

    law_y, low_y, high_y = _law_on(results, key, path, up)
    lines = [_Line(name="law", number=rough(ahead[shown[-1].label].value), x=path.x, y=law_y, style=_LAW)]
    theirs = [up(baseline_value(known[each.label], key)) for each in shown]
    if np.isfinite(theirs).all():
        named = opponent(results.rungs[0].study)
        lines.append(_Line(name=named, x=[at(each) for each in shown], y=theirs, style=_THEIRS))
    stable = _boundary_on(results, path) if name == "lr" else None
    if stable is not None:
        lines.append(_Line(name="unstable", x=path.x, y=stable[0], style=_UNSTABLE))
    for rule in PUBLISHED:
        said = [rule_value(known[each.label], rule, key) for each in shown]
        if all(value is not None and math.isfinite(up(value)) for value in said):
            lines.append(
                _Line(name=rule, x=[at(each) for each in shown], y=[up(v) for v in said if v is not None], style=_RULE)
            )

    measured_there = results.check.estimate(key) if results.check is not None else None
    seen = [e for e in (*(e for _, e in found), measured_there) if e is not None]
    core = [up(end) for e in seen for end in (e.value, e.low, e.high)]
    predicted = [*law_y, *(up(end) for each in beyond for end in (ahead[each.label].low, ahead[each.label].high))]
    limits = _limits(core, predicted, [y for line in lines[1:] for y in line.y], name, scale)
    x_limits = _padded(at(shown[0]), at(shown[-1]), 0.05, least=FEWEST_TICKS)
    width = x_limits[1] - x_limits[0]

    if stable is not None:
        plot.add_trace(area(path.x, np.clip(stable[1], *limits), np.clip(stable[2], *limits), INK_BAND))
    plot.add_trace(area(path.x, np.clip(low_y, *limits), np.clip(high_y, *limits), ACCENT_BAND))
    for line in lines[::-1]:
        plot.add_trace(_drawn(line, name, scale))
    for rung, estimate in found:
        _point(plot, at(rung.size), estimate, up, limits, INK, hollow=not bent(rung, key),
            hover=f"{rung.size.label}: {name} {estimate}")  # fmt: skip
    for each in beyond:
        estimate, is_check = ahead[each.label], each == ladder.check
        hover = f"predicted at {each.label}: {name} {estimate}"
        side = at(each) - (BESIDE * width if is_check and measured_there is not None else 0)
        _bar(plot, side, estimate, up, limits, hover)
    if measured_there is not None and results.check is not None:
        place = at(results.check.size) + BESIDE * width
        _point(plot, place, measured_there, up, limits, INK, symbol="diamond", hollow=not bent(results.check, key),
            hover=f"measured at {results.check.size.label}: {name} {measured_there}")  # fmt: skip
    _name_sizes(plot, results, {each.label: at(each) for each in shown}, x_limits)
    _set_x(plot, x_limits)
    _name_lines(plot, lines, limits)
    _set_y(plot, limits, scale)
    return Figure(title=name, caption=_caption(name, scale, _beyond(lines, limits, scale)), plot=plot, size=size)


def _caption(name: str, scale: Scale, beyond: Sequence[str]) -> str:
    """What a key is, on which scale, and which lines have left the plot."""
    rule = SEARCHABLE[name]
    unit = f", {rule.unit}" if rule.unit else ""
    scaled = " On the log of 1 − value." if scale == "log1m" else ""
    left = f" Beyond the axis: {listed(list(beyond))}." if beyond else ""
    return f"{name}: {rule.doc}{unit}.{scaled}{left}"


def _beyond(lines: Sequence[_Line], limits: tuple[float, float], scale: Scale) -> list[str]:
    """The lines whose right end is beyond the vertical axis, each with its value there."""
    down = _down(scale)
    return [
        f"{line.name} ({rough(down(float(line.y[-1])))})" for line in lines if not limits[0] <= line.y[-1] <= limits[1]
    ]


KEY_LEGEND = (
    "Dots: each rung's best value with its 90% interval; hollow: its trials show none inside the range. Blue: the law "
    "that is fitted to the rungs alone, with its 90% band. Blue bars: what it predicts for sizes that it has not seen; "
    "diamond: what the check's own search measured. Thin: published rules."
)
_LAW = {"color": ACCENT, "width": 2.4}
_THEIRS = {"color": INK, "width": 1.6, "dash": "dash"}
_UNSTABLE = {"color": MUTED, "width": 1.8, "dash": "dash"}
_RULE = {"color": MUTED, "width": 0.9}


# scales


def _across(axis: str) -> Callable[[Size], float]:
    return lambda size: math.log({"N": size.weights, "D": size.tokens}[axis])


def _upwards(scale: Scale) -> Callable[[float], float]:
    """A value's height: its log, of a beta the log of 1 / (1 - value), on a linear scale itself."""

    def up(value: float) -> float:
        if scale == "linear":
            return value
        if scale == "log1m":
            return -math.log(1 - value) if value < 1 else math.inf
        return math.log(value) if value > 0 else -math.inf

    return up


def _down(scale: Scale) -> Callable[[float], float]:
    """The inverse of `_upwards`."""
    return {"linear": float, "log1m": lambda y: 1 - math.exp(-y), "log": math.exp}[scale]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """Sizes from the smallest to the largest, many between each two."""

    x: Array  # P logs on the figure's axis
    between: Array  # P x M logs on the laws' axes
    sizes: tuple[Size, ...]  # that the path goes through, one for each place on the axis
    at: Array  # their places


def _grid(results: LadderResults, shown: Sequence[Size], at: Callable[[Size], float]) -> _Path:
    through = tuple({at(size): size for size in shown}.values())  # of several budgets of a model the largest
    places = np.array([at(size) for size in through])
    x = np.unique(np.concatenate([places, np.linspace(places[0], places[-1], POINTS)]))
    logs = np.array([results.ladder.coordinates(size) for size in through])
    between = np.column_stack([np.interp(x, places, column) for column in logs.T])
    return _Path(x=x, between=between, sizes=through, at=places)


def _law_on(results: LadderResults, key: str, path: _Path, up: Callable[[float], float]) -> Array:
    """The heights of the law and the ends of its band, as 3 x P.

    lr is predicted as a multiple of a rule: the log of what it is a multiple of is a line between two sizes.
    """
    ends = np.array([results.interval_at(key, sizes) for sizes in path.between]).T
    if key != OVER_RULE:
        dimension = results.rungs[-1].study.space[key]
        flipped = isinstance(dimension, FloatRange) and dimension.scale == "log1m"
        return -ends[[0, 2, 1]] if flipped else ends
    offsets = [up(results.estimate(key, size).value) - results.interval(key, size)[0] for size in path.sizes]
    return np.asarray(ends + np.interp(path.x, path.at, offsets))


def _boundary_on(results: LadderResults, path: _Path) -> Array | None:
    """The heights of the largest stable lr and the ends of its band, as 3 x P."""
    if (fitted := results.boundary) is None:
        return None
    return np.array([fitted.at(sizes, LEVEL) for sizes in path.between]).T


def _limits(
    core: Sequence[float], predicted: Sequence[float], others: Sequence[float], name: str, scale: Scale
) -> tuple[float, float]:
    """The ends of the vertical axis: what was measured, and what is not too far from that, within legal values.

    Predictions beyond stretch the axis as far as they may, other lines not at all.
    """
    low, high = min(core), max(core)
    room, up = ROOM if scale != "linear" else high - low, _upwards(scale)
    near = [*np.clip(predicted, low - room, high + room), *(y for y in others if low - room <= y <= high + room)]
    least, most = up(SEARCHABLE[name].low), up(SEARCHABLE[name].high)
    low, high = max(min(low, *near), least), min(max(high, *near), most)
    return _padded(low, high, 0.06, least=0.0 if scale == "linear" else FEWEST_TICKS)


def _padded(low: float, high: float, share: float, least: float = 0.0) -> tuple[float, float]:
    """The ends of an axis with a share of room on either side, at least `least` apart."""
    pad = max(share * (high - low), (least - (high - low)) / 2) or 0.5
    return low - pad, high + pad


# marks


def _drawn(line: _Line, name: str, scale: Scale) -> go.Scatter:
    down = _down(scale)
    texts = [f"{rough(down(float(y)))} at {short(math.exp(x))}" for x, y in zip(line.x, line.y, strict=True)]
    hover = f"{html.escape(line.name)}<br>{html.escape(name)} %{{customdata}}<extra></extra>"
    return go.Scatter(
        x=list(line.x), y=list(line.y), mode="lines", line=dict(line.style), customdata=texts, hovertemplate=hover
    )


def _mark(plot: go.Figure, x: float, y: float, hover: str, **style: Any) -> None:
    template = f"{html.escape(hover)}<extra></extra>"
    plot.add_trace(go.Scatter(x=[x], y=[y], mode="markers", cliponaxis=False, hovertemplate=template, **style))


def _point(
    plot: go.Figure,
    x: float,
    found: Estimate,
    up: Callable[[float], float],
    limits: tuple[float, float],
    colour: str,
    *,
    hover: str,
    hollow: bool,
    symbol: str = "circle",
) -> None:
    value, *ends = (float(np.clip(up(each), *limits)) for each in (found.value, found.low, found.high))
    low, high = sorted(ends)
    marker = {"size": 9.5, "symbol": symbol, "color": colour, "line": {"color": colour, "width": 1.8}}
    if hollow:
        marker |= {"color": GROUND}
    arms = {"array": [high - value], "arrayminus": [value - low], "color": colour, "thickness": 1.6, "width": 4}
    _mark(plot, x, value, hover, marker=marker, error_y=arms)


def _bar(
    plot: go.Figure,
    x: float,
    found: Estimate,
    up: Callable[[float], float],
    limits: tuple[float, float],
    hover: str,
) -> None:
    """A predicted interval as a bar, and the prediction as a dot on it if that is within the axis."""
    value, low, high = (float(np.clip(up(each), *limits)) for each in (found.value, found.low, found.high))
    style = {"color": ACCENT, "width": 5}
    plot.add_trace(go.Scatter(x=[x, x], y=[low, high], mode="lines", line=style, opacity=0.55, hoverinfo="skip"))
    if not limits[0] <= up(found.value) <= limits[1]:
        return
    dot = {"size": 9, "color": ACCENT, "line": {"color": GROUND, "width": 1.2}}
    _mark(plot, x, value, hover, marker=dot)


def _name_sizes(
    plot: go.Figure, results: LadderResults, places: Mapping[str, float], limits: tuple[float, float]
) -> None:
    """Writes the names of sizes above the plot, one row higher if there is no room; check and target have a line each.

    `places` are the sizes' by label. A rung whose name does not fit into three rows has none.
    """
    ladder, width = results.ladder, limits[1] - limits[0]
    roles = {
        size.label: role for role, size in (("check", ladder.check), ("target", ladder.target)) if size is not None
    }
    taken: list[list[tuple[float, float]]] = [[] for _ in range(4)]
    for label, x in sorted(places.items(), key=lambda place: (place[0] in roles, place[1])):
        role = roles.get(label)
        text = f"{role} <b>{html.escape(label)}</b>" if role else html.escape(label)
        half = NAME_WIDTH * len(f"{role or ''} {label}") / NARROW / 2
        at = (x - limits[0]) / width
        centre = at - half if role and at + half > 1 else at
        row = next(
            (row for row, names in enumerate(taken) if all(abs(centre - c) > half + h for c, h in names)),
            len(taken) - 1,
        )
        if role:
            plot.add_vline(x=x, line={"color": FAINT, "width": 1, "dash": "dot"}, layer="below")
        elif row == len(taken) - 1:
            continue
        taken[row].append((centre, half))
        anchor = "center" if centre == at else "right"
        plot.add_annotation(
            x=x, y=1, yref="paper", yanchor="bottom", yshift=2 + ROW * row, text=text, showarrow=False, xanchor=anchor,
            font={"color": INK if role else MUTED, "size": 11.5},
        )  # fmt: skip
    plot.update_layout(margin_t=10 + ROW * (1 + max(row for row, names in enumerate(taken) if names)))


def _name_lines(plot: go.Figure, lines: Sequence[_Line], limits: tuple[float, float]) -> None:
    """Writes each line's name beside its right end, at least LABEL_GAP apart; with an arrow if that is off the axis."""
    low, high = limits
    ends = [float(np.clip(line.y[-1], low, high)) for line in lines]
    from_, to = max(line.x[-1] for line in lines), plot.layout.xaxis.range[1]
    longest = 0
    for line, end, y in zip(lines, ends, apart(ends, LABEL_GAP * (high - low), limits), strict=True):
        colour, arrow = line.style["color"], " ↑" if line.y[-1] > high else " ↓" if line.y[-1] < low else ""
        number = f" <b>{line.number}</b>" if line.number else ""
        leader = {"color": colour, "width": 0.7}
        plot.add_trace(go.Scatter(x=[from_, to], y=[end, y], mode="lines", line=leader, hoverinfo="skip"))
        plot.add_annotation(
            x=1, xref="paper", y=y, text=f"{html.escape(line.name)}{number}{arrow}", showarrow=False, xanchor="left",
            xshift=5, font={"color": colour, "size": 12},
        )  # fmt: skip
        longest = max(longest, len(f"{line.name} {line.number}{arrow}"))
    plot.update_layout(margin_r=14 + int(LABEL_WIDTH * longest))


def _set_x(plot: go.Figure, limits: tuple[float, float]) -> None:
    low, high = (math.exp(end) for end in limits)
    marks = [float(mark) for mark in ticks(FloatRange(low=low, high=high, scale="log"), most=5)]
    plot.update_xaxes(
        range=list(limits), tickvals=[math.log(mark) for mark in marks], ticktext=[*map(short, marks)], tickangle=0
    )


def _set_y(plot: go.Figure, limits: tuple[float, float], scale: Scale) -> None:
    low, high = sorted(_down(scale)(end) for end in limits)
    up = _upwards(scale)
    marks = [float(mark) for mark in ticks(FloatRange(low=low, high=high, scale=scale), most=7)]
    plot.update_yaxes(range=list(limits), tickvals=[up(mark) for mark in marks], ticktext=[*map(tick_text, marks)])


# losses


def compute_figures(results: LadderResults) -> Iterator[Figure]:
    """Losses of both sides against the compute of a run, and beside it what tuning gains."""
    rungs = results.searched
    pairs = [(rung, *measured(rung.results)) for rung in rungs]
    full = [(rung, theirs, ours) for rung, theirs, ours in pairs if ours and ours.val_loss and theirs.val_loss]
    if full:
        yield _losses(results, full)
    if any(contrast for _, contrast in gains(results)):
        yield _gains(results)


def _losses(results: LadderResults, full: Sequence[tuple[Rung, Measured, Measured]]) -> Figure:
    plot = empty_plot("FLOPs of one run", "val loss (nats)", height=330, margin=MARGIN)
    x = [math.log(rung.flops) for rung, _, _ in full]
    ends: list[_Line] = []
    every: list[float] = []
    for name, style, sides in (
        (opponent(results.rungs[0].study), _THEIRS, [theirs for _, theirs, _ in full]),
        ("tuned", _LAW, [ours for _, _, ours in full]),
    ):
        losses = [side.val_loss or 0.0 for side in sides]
        errors = [1.96 * (side.se or 0.0) for side in sides]
        every += [value + sign * error for value, error in zip(losses, errors, strict=True) for sign in (-1, 1)]
        texts = [f"{entry[0].size.label}: {name} {side}" for entry, side in zip(full, sides, strict=True)]
        plot.add_trace(
            go.Scatter(
                x=x, y=losses, mode="lines+markers", line=dict(style), marker={"size": 8, "color": style["color"]},
                error_y={"array": errors, "color": style["color"], "thickness": 1.6, "width": 4}, customdata=texts,
                hovertemplate="%{customdata} nats<extra></extra>",
            )
        )  # fmt: skip
        ends.append(_Line(name=name, number=f"{losses[-1]:.3f}", x=x, y=losses, style=style))
    limits = _padded(min(every), max(every), 0.06)
    _compute_axis(plot, results, [rung for rung, _, _ in full])
    _name_lines(plot, ends, limits)
    plot.update_yaxes(range=list(limits))
    fresh = all(ours.se is not None for _, _, ours in full)
    caption = (
        "Means over fresh seeds with 95% intervals." if fresh else "Means over fresh seeds; one seed if not confirmed."
    )
    return Figure(title="Loss against compute", caption=caption, plot=plot, size="half")


def _gains(results: LadderResults) -> Figure:
    who = opponent(results.rungs[0].study)
    plot = empty_plot("FLOPs of one run", f"{who} less tuned (nats)", height=330, margin=MARGIN)
    found = [(rung, contrast) for rung, contrast in gains(results) if contrast is not None]
    x = [math.log(rung.flops) for rung, _ in found]
    values = [-c.difference for _, c in found]
    ends = [(-c.high, -c.low) for _, c in found]
    every = [0.0, *(end for pair in ends for end in pair)]
    limits = _padded(min(every), max(every), 0.06)
    plot.add_hline(y=0, line=_THEIRS)
    if (fitted := gain_law(results)) is not None:
        grid = np.linspace(min(x), max(x), POINTS)
        middle, low, high = _band(fitted, grid)
        plot.add_trace(area(grid, np.clip(low, *limits), np.clip(high, *limits), ACCENT_BAND))
        line = {**_LAW, "width": 1.6}
        plot.add_trace(go.Scatter(x=grid, y=np.clip(middle, *limits), mode="lines", line=line, hoverinfo="skip"))
    plot.add_trace(
        go.Scatter(
            x=x, y=values, mode="markers", marker={"size": 9.5, "color": ACCENT},
            error_y={
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "color": ACCENT, "thickness": 1.8, "width": 4,
            },
            customdata=[
                f"{rung.size.label}: {value:.3f} [{low:.3f}, {high:.3f}]"
                for (rung, _), value, (low, high) in zip(found, values, ends, strict=True)
            ],
            hovertemplate="%{customdata} nats<extra></extra>",
        )
    )  # fmt: skip
    _compute_axis(plot, results, [rung for rung, _ in found])
    plot.update_yaxes(range=list(limits))
    caption = "What the search's winner gains on fresh seeds, with 95% intervals; the line with its 90% band."
    return Figure(title="What tuning gains", caption=caption, plot=plot, size="half")


def _band(fitted: Law, grid: Array) -> Array:
    """A law's values and the ends of their interval, as 3 x P."""
    return np.array([fitted.at(np.array([x]), LEVEL) for x in grid]).T


def _compute_axis(plot: go.Figure, results: LadderResults, rungs: Sequence[Rung]) -> None:
    places = {rung.size.label: math.log(rung.flops) for rung in rungs}
    limits = _padded(min(places.values()), max(places.values()), 0.06, least=FEWEST_TICKS)
    _name_sizes(plot, results, places, limits)
    low, high = (math.exp(end) for end in limits)
    marks = [float(mark) for mark in ticks(FloatRange(low=low, high=high, scale="log"), most=4)]
    plot.update_xaxes(
        range=list(limits), tickvals=[math.log(m) for m in marks], ticktext=[*map(_power, marks)], tickangle=0
    )


def _power(value: float) -> str:
    """`10<sup>15</sup>` or `2·10<sup>15</sup>`."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    power = f"10<sup>{int(exponent)}</sup>"
    return power if mantissa == "1.0" else f"{mantissa.removesuffix('.0')}·{power}"


# the check


def check_figures(results: LadderResults) -> Iterator[Figure]:
    """The regrets of the check's sides with their intervals, beside the margin."""
    every = [each for each in results.regrets if each.side != SEARCH]
    sides = [
        (each, (each.regret, each.low, each.high))
        for each in every
        if each.regret is not None and each.low is not None and each.high is not None
    ]
    if not sides:
        return
    plot = empty_plot("nats above the check's own search", "", height=100 + 50 * len(sides))
    margin = results.ladder.table.check_margin
    ends = [-margin, margin, *(end for _, ends in sides for end in ends[1:])]
    limits = _padded(min(ends), max(ends), 0.1)
    plot.add_vrect(x0=-margin, x1=margin, fillcolor=INK_BAND, line_width=0, layer="below")
    plot.add_vline(x=0, line={"color": INK, "width": 1.6, "dash": "dash"})
    for row, (each, value) in enumerate(sides):
        interval_row(
            plot,
            row,
            value,
            limits,
            text=f"<b>{html.escape(str(each).split(' ')[0])}</b> {html.escape(str(each).split(' ', 1)[1])}",
            hover=f"{html.escape(results.side_name(each.side))}<br>{each} nats",
            colour=ACCENT if each.side == PREDICTED else MUTED,
        )
    names = [html.escape(results.side_name(each.side)).replace(" from ", "<br>from ") for each, _ in sides]
    plot.update_xaxes(range=list(limits))
    plot.update_yaxes(
        tickvals=[-row for row in range(len(sides))], ticktext=names, range=[-len(sides) + 0.5, 0.75], showgrid=False
    )
    caption = (
        f"Dot and 95% interval over {sides[0][0].seeds} fresh seeds, each beside the search's winner on that seed. "
        f"Shaded: within the margin of {margin:g} nats, which decides of the predicted values."
    )
    yield Figure(title="Regret at the check", caption=caption, plot=plot, size="full")
