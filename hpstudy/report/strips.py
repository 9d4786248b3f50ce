"""A strip per searched key: all trials along its range. It stands in the page without JavaScript."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from hpstudy.analysis.in_short import opponent
from hpstudy.analysis.numbers import plain
from hpstudy.analysis.ranges import position
from hpstudy.analysis.results import StudyResults
from hpstudy.records import Outcome
from hpstudy.report.curves import objective_column
from hpstudy.report.endings import ending, not_complete
from hpstudy.report.search_figures import badness, shown_range, value_text
from hpstudy.report.svg import tag
from hpstudy.study import Dimension

WIDTH, HEIGHT, EDGE = 190, 40, 7  # pixels; EDGE keeps dots inside


def strip(results: StudyResults, key: str, winner: str | None) -> Markup:
    """A key's strip: the better a trial, the lower it stands. On top are the others: pruned hollow, lost crossed."""
    study, column = results.study, objective_column(results.study)
    dimension, complete = study.space[key], results.ranked()
    limits = shown_range(complete[column], column)
    drawn = [tag("line", class_="axis", x1=EDGE, x2=WIDTH - EDGE, y1=HEIGHT - 1, y2=HEIGHT - 1)]
    if dimension.contains(value := study.value(study.baseline, key)):
        x = _across(dimension, value)
        drawn.append(tag("line", class_="baseline", x1=x, x2=x, y1=0, y2=HEIGHT - 2))
    for row in not_complete(results).to_dict("records"):
        x, title = _across(dimension, row[key]), tag("title", f"{row['run_id']}: {ending(row)}")
        if row["outcome"] == Outcome.PRUNED:
            drawn.append(tag("circle", title, class_="pruned", cx=x, cy=5.5, r=2.5))
        else:
            drawn.append(tag("path", title, class_="lost", d=f"M{x - 2.5:.1f},3 l5,5 m0,-5 l-5,5"))
    for row in reversed(complete.to_dict("records")):  # the best is on top
        y = HEIGHT - EDGE - badness(row[column], limits, column) * (HEIGHT - 2 * EDGE)
        kind, size = ("winner", 5) if row["run_id"] == winner else ("trial", 2.7)
        title = tag("title", f"{row['run_id']}: {key} {plain(row[key])}, {value_text(row[column], column)}")
        drawn.append(tag("circle", title, class_=kind, cx=_across(dimension, row[key]), cy=y, r=size))
    return tag(
        "svg",
        *drawn,
        class_="strip",
        width=WIDTH,
        height=HEIGHT,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{len(complete)} trials of {key}, the better the lower; dashed: {opponent(study)}",
    )


def _across(dimension: Dimension, value: Any) -> float:
    return EDGE + min(max(position(dimension, value), 0.0), 1.0) * (WIDTH - 2 * EDGE)
