"""A study's tables and verdict -> `index.html` and `report.md`.

curves.py picks what a figure can show, curve_figures.py and search_figures.py draw it in the looks of style.py on the
axes of scales.py, tables.py words it, and page.py puts all on two pages.
"""

from hpstudy.report.page import write_report

__all__ = ["write_report"]
