"""What a study found -> `index.html`, `report.md`, the terminal's table, and one page for several studies.

curves.py picks what a figure shows; curve_figures.py and search_figures.py draw it in the style of style.py on the axes
of scales.py. tables.py words the tables, sections.py puts all parts in order, and html.py, markdown.py, terminal.py and
compare.py write them.
"""

import plotly.graph_objects as go

from hpstudy.analysis.results import StudyResults
from hpstudy.report.compare import Finding, finding, side_by_side, write_side_by_side
from hpstudy.report.html import write_report
from hpstudy.report.markdown import results_markdown
from hpstudy.report.sections import sections

__all__ = ["Finding", "figures", "finding", "results_markdown", "side_by_side", "write_report", "write_side_by_side"]


def figures(results: StudyResults) -> dict[str, go.Figure]:
    """The figures of a study's report, by title."""
    return {figure.title: figure.plot for section in sections(results, {}) for figure in section.figures}
