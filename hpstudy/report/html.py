"""A study's report as files: a self-contained HTML page, and Markdown."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpstudy import __version__
from hpstudy.analysis.results import StudyResults
from hpstudy.files import write_atomic
from hpstudy.report.markdown import report_markdown
from hpstudy.report.sections import Section, sections
from hpstudy.report.style import DARK, Figure

if TYPE_CHECKING:
    from hpstudy.search.importance import Importance


def write_report(
    results: StudyResults, directory: Path, *, importances: Mapping[str, Importance] | None = None
) -> Path:
    """Writes `index.html` and `report.md` atomically, and returns the path of the page.

    importances: each searched key's share, the largest first. Raises MachineError if the folder cannot be written.
    """
    study, verdict = results.study, results.verdict()
    parts = sections(results, importances or {})
    write_atomic(directory / "report.md", report_markdown(study, verdict, parts))
    page = directory / "index.html"
    beside = verdict.sentence.removeprefix(verdict.headline).strip()
    shown = render(name=study.name, question=study.question, headline=verdict.headline, beside=beside, sections=parts)
    write_atomic(page, shown)
    return page


def render(*, name: str, question: str, headline: str, sections: Sequence[Section], beside: str = "") -> str:
    """The self-contained page. `beside` is what a reader must know besides the headline."""
    environment = Environment(
        loader=PackageLoader("hpstudy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly = get_plotlyjs()
    script, _, _ = environment.loader.get_source(environment, "page.js")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        name=name,
        question=question,
        headline=headline,
        beside=beside,
        sections=sections,
        plotly=Markup(plotly),
        script=Markup(script),
        policy=" ".join(_source_hash(text) for text in (plotly, script)),
        dark=DARK,
        data=_data,
        version=__version__,
    )


def _data(figure: Figure) -> Markup:
    """A figure as JSON that cannot end its HTML element: in JSON, "<" occurs only in strings."""
    return Markup(str(figure.plot.to_json()).replace("<", "\\u003c"))


def _source_hash(script: str) -> str:
    """A script's hash as a Content-Security-Policy allows it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
