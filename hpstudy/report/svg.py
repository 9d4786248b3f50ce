"""Elements of SVG and HTML as text whose values are escaped."""

from __future__ import annotations

from markupsafe import Markup


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element. `class_` stands for class and `data_run` for data-run; numbers have one decimal."""
    given = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.1f}" if type(value) is float else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(given), Markup("").join(inside))
