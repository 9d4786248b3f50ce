"""A study's report as files: a self-contained HTML page, Markdown, and the trials as CSV."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpstudy import __version__
from hpstudy.analysis.results import StudyResults
from hpstudy.files import write_atomic
from hpstudy.report.curves import shown_runs
from hpstudy.report.first_screen import FirstScreen, first_screen
from hpstudy.report.images import write_images
from hpstudy.report.markdown import report_markdown
from hpstudy.report.sections import Opening, Section, sections
from hpstudy.report.style import DARK, Figure

if TYPE_CHECKING:
    from hpstudy.search.importance import Importance  # Optuna takes half a second to import

MINUS = re.compile(r"(?<![\w-])-(?=\d)")  # before a number, not within a word or a range


def write_report(
    results: StudyResults, directory: Path, *, importances: Mapping[str, Importance] | None = None, images: bool = False
) -> Path:
    """Writes `index.html`, `report.md` and `trials.csv` atomically, and returns the path of the page.

    importances: each searched key's share, the largest first. With `images`, `report.md` shows its figures, which are
    written as SVG beside it; raises as `write_images` does. Raises MachineError if the folder cannot be written.
    """
    study, shown = results.study, shown_runs(results)
    first, parts = first_screen(results, shown), sections(results, importances or {}, shown)
    files = write_images(first, parts, directory) if images else {}
    write_atomic(directory / "report.md", report_markdown(results, first, parts, files))
    write_atomic(directory / "trials.csv", results.trials.to_csv(index=False))
    page = directory / "index.html"
    write_atomic(page, render(name=study.name, question=study.question, first=first, sections=parts))
    return page


def render(
    *,
    name: str,
    question: str,
    headline: str = "",
    sections: Sequence[Section],
    first: FirstScreen | None = None,
    opening: Opening | None = None,
) -> str:
    """The self-contained page: the first screen or an opening if there is one, else a headline, and the parts below."""
    environment = Environment(
        loader=PackageLoader("hpstudy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["coded"] = coded
    script, style = (_source(environment, name) for name in ("page.js", "page.css"))
    return environment.get_template("page.html").render(
        name=name,
        question=question,
        headline=headline,
        first=first,
        opening=opening,
        sections=sections,
        plotly=_packed_plotly(),
        script=Markup(script),
        style=Markup(style),
        policy=" ".join(_source_hash(text) for text in (get_plotlyjs(), script)),
        dark=DARK,
        data=_data,
        version=__version__,
    )


def coded(text: str) -> Markup:
    """A sentence whose commands and keys, between backticks, are set as code."""
    parts = (
        Markup("<code>{}</code>").format(part) if odd % 2 else MINUS.sub("−", part)
        for odd, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _packed_plotly() -> Markup:
    """Plotly's script, compressed: 2.0 MB instead of 4.8. The page's own script unpacks it."""
    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())


def _data(figure: Figure) -> Markup:
    """A figure as JSON that cannot end its HTML element: in JSON, "<" occurs only in strings."""
    return Markup(str(figure.plot.to_json()).replace("<", "\\u003c"))


def _source_hash(script: str) -> str:
    """A script's hash as a Content-Security-Policy allows it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
