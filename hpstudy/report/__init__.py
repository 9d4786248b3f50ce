"""A study's tables and verdict -> `index.html` and `report.md`.

curves.py picks what a figure can show, figures.py draws it, tables.py words it, page.py puts all on two pages.
"""

from hpstudy.report.page import write_report

__all__ = ["write_report"]
