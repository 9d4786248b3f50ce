"""Parallel coordinates: a line per trial over the searched keys and its result. The page's script selects lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from hpstudy.analysis.numbers import plain
from hpstudy.analysis.ranges import position
from hpstudy.analysis.results import StudyResults
from hpstudy.report.curves import objective_column, spread
from hpstudy.report.endings import ending, not_complete
from hpstudy.report.scales import tick_text, ticks
from hpstudy.report.search_figures import badness, shown_range, trial_namer, value_text
from hpstudy.report.svg import tag

WIDTH, HEIGHT, TOP, BOTTOM = 1176, 340, 34, 316  # pixels; lines run between TOP and BOTTOM
LEFT, RIGHT = 44, 80
AXIS_WIDTH = 110  # pixels that an axis needs, at least
LEAST_WIDTH = 760  # pixels, below which its texts are too small
MOST_LINES = 200
WEAKEST = 0.14  # opacity of the worst trial's line


def parallel_coordinates(results: StudyResults, winner: str | None) -> Markup:
    """At most MOST_LINES trials, evenly spread from best to worst, which sets how strong their lines are.

    Lines of trials that are not complete stop before the last axis, which is the result's.
    """
    study, column, ranked = results.study, objective_column(results.study), results.ranked()
    limits = shown_range(ranked[column], column)
    rows = [*ranked.to_dict("records"), *not_complete(results).to_dict("records")]
    kept = {str(name) for name in spread([str(row["run_id"]) for row in rows], MOST_LINES)}
    places = np.linspace(LEFT, WIDTH - RIGHT, len(study.space) + 1)
    lines, named = [], trial_namer(results)
    for rank, row in enumerate(rows):
        if str(row["run_id"]) not in kept:
            continue
        heights = [position(dimension, row[key]) for key, dimension in study.space.items()]
        is_complete = rank < len(ranked)
        heights += [_height(row[column], limits, column)] if is_complete else []
        kind = "winner" if row["run_id"] == winner else "trial" if is_complete else "lost"
        strength = max(WEAKEST, (1 - rank / len(ranked)) ** 1.5) if kind == "trial" else 1.0
        result = value_text(row[column], column) if is_complete else ending(row)
        values = ", ".join(f"{key} {plain(row[key])}" for key in study.space)
        title = tag("title", f"{named(row['run_id'])}: {values}; {result}")
        points, run = _points(places, heights), str(row["run_id"])
        lines.append(tag("polyline", title, class_=kind, data_run=run, points=points, stroke_opacity=f"{strength:.2f}"))
    theirs = {key: study.value(study.baseline, key) for key in study.space}
    baseline = []
    if all(study.space[key].contains(value) for key, value in theirs.items()):
        heights = [position(study.space[key], value) for key, value in theirs.items()]
        own = ranked.loc[ranked["run_id"] == study.baseline_run_id, column]
        heights += [_height(float(own.iloc[0]), limits, column)] if len(own) else []
        baseline = [tag("polyline", class_="baseline", points=_points(places, heights))]
    axes = [_axis(at, places[at], key, _marks(study.space[key])) for at, key in enumerate(study.space)]
    beyond = bool((ranked[column] != ranked[column].clip(*limits)).any())
    axes.append(_axis(len(axes), places[-1], *_result_marks(limits, column, beyond)))
    return tag(
        "svg",
        *reversed(lines),  # the best is on top
        *baseline,
        *axes,
        id="parallel",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        style=f"min-width: {max(LEAST_WIDTH, AXIS_WIDTH * len(axes))}px",
        role="group",
        aria_label=f"{len(lines)} trials over {', '.join(study.space)} and their result",
    )


def _height(value: float, limits: tuple[float, float], column: str) -> float:
    """The place on the result's axis, whose values rise: low losses are at its foot, low speeds too."""
    share = badness(value, limits, column)
    return share if column == "val_loss" else 1 - share


def _y(height: float) -> float:
    return BOTTOM - min(max(height, 0.0), 1.0) * (BOTTOM - TOP)


def _points(places: np.ndarray, heights: list[float]) -> str:
    return " ".join(f"{x:.1f},{_y(height):.1f}" for x, height in zip(places, heights, strict=False))


def _marks(dimension: Any) -> dict[str, float]:
    return {tick_text(mark): position(dimension, mark) for mark in ticks(dimension, most=5)}


def _result_marks(limits: tuple[float, float], column: str, beyond: bool) -> tuple[str, dict[str, float]]:
    """The name of the result's axis, and its ticks. The worst one stands for all `beyond` it."""
    low, high = limits
    heights = np.linspace(0, 1, 4)
    values = low + heights * (high - low)
    if column != "val_loss":
        texts = [plain(float(value)) for value in values]
        texts[0] = f"≤ {texts[0]}" if beyond else texts[0]
    else:
        digits = min(max(0, 1 - math.floor(math.log10(high - low))), 5) if high > low else 3
        texts = [f"{value:.{digits}f}" for value in values]
        texts[-1] = f"≥ {texts[-1]}" if beyond else texts[-1]
    return "val loss" if column == "val_loss" else "tokens/s", dict(zip(texts, heights.tolist(), strict=True))


def _axis(at: int, x: float, name: str, marks: Mapping[str, float]) -> Markup:
    x = float(x)
    texts = [tag("text", text, class_="tick", x=x + 6, y=_y(height) + 4) for text, height in marks.items()]
    hint = f"select trials by {name}: drag along the axis, or press the up and down keys; Escape clears"
    return tag(
        "g",
        tag("line", class_="axis", x1=x, x2=x, y1=TOP, y2=BOTTOM),
        *texts,
        tag("text", name, class_="name", x=x, y=16, text_anchor="middle"),
        tag(
            "rect", class_="grab", data_axis=at, x=x - 14, y=TOP - 6, width=28, height=BOTTOM - TOP + 12,
            tabindex=0, role="button", aria_label=hint,
        ),
    )  # fmt: skip
