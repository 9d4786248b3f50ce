"""A study's tables and verdict -> `index.html` and `report.md`.

curves.py picks what a figure can show, curve_figures.py and search_figures.py draw it in the looks of style.py on the
axes of scales.py, tables.py words it, sections.py puts all in order, page.py and markdown.py write it; side_by_side.py
makes one page of several studies.
"""

from hpstudy.report.markdown import results_markdown
from hpstudy.report.page import write_report
from hpstudy.report.side_by_side import Finding, finding, side_by_side, write_side_by_side

__all__ = ["Finding", "finding", "results_markdown", "side_by_side", "write_report", "write_side_by_side"]
