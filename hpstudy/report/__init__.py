"""What a study found -> `index.html`, `report.md`, and one page for several studies.

first_screen.py has the answer, sections.py what is below it. curves.py picks what a figure shows; curve_figures.py and
search_figures.py draw it in the style of style.py on the axes of scales.py; strips.py and parallel.py draw the search
as SVG. tables.py words the tables. html.py with page.html, page.css and page.js, markdown.py, images.py, terminal.py
and compare.py write them. ladder.py, ladder_figures.py and ladder_screen.py do the same for a ladder.
"""

import plotly.graph_objects as go

from hpstudy.analysis.results import StudyResults
from hpstudy.report.compare import Finding, finding, side_by_side, write_side_by_side
from hpstudy.report.curves import shown_runs
from hpstudy.report.first_screen import first_screen
from hpstudy.report.html import write_report
from hpstudy.report.markdown import results_markdown
from hpstudy.report.sections import sections

__all__ = ["Finding", "figures", "finding", "results_markdown", "side_by_side", "write_report", "write_side_by_side"]


def figures(results: StudyResults) -> dict[str, go.Figure]:
    """The figures of a study's report, by title."""
    shown = shown_runs(results)
    first = first_screen(results, shown)
    drawn = [figure for _, figure in first.tabs] + ([first.differences] if first.differences else [])
    drawn += [figure for section in sections(results, {}, shown) for figure in section.figures]
    found: dict[str, go.Figure] = {}
    for figure in drawn:
        found.setdefault(figure.title, figure.plot)  # the loss against tokens, not against steps or seconds
    return found
