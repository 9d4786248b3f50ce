"""A study's report as files: HTML that needs nothing but itself, and Markdown."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpstudy import __version__
from hpstudy.analysis.answers import Verdict
from hpstudy.analysis.frames import StudyFrames
from hpstudy.errors import MachineError
from hpstudy.report.markdown import report_markdown
from hpstudy.report.sections import Section, sections
from hpstudy.report.style import DARK, Figure
from hpstudy.study import Study
from hpstudy.tracking.store import write_atomic


def write_report(
    frames: StudyFrames,
    study: Study,
    verdict: Verdict,
    environment: Mapping[str, Any],
    directory: Path,
    *,
    importances: Mapping[str, float] | None = None,
) -> Path:
    """Writes `index.html` and `report.md`, each whole or not at all, and returns the path of the first.

    importances: each searched key's share, the largest first. Raises MachineError when the folder cannot be written.
    """
    parts = sections(frames, study, verdict, environment, importances or {})
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"{directory}: cannot be made: {error.strerror}; free some space and report again"
        ) from error
    write_atomic(directory / "report.md", report_markdown(study, verdict, parts))
    page = directory / "index.html"
    beside = verdict.sentence.removeprefix(verdict.headline).strip()
    shown = render(name=study.name, question=study.question, headline=verdict.headline, beside=beside, sections=parts)
    write_atomic(page, shown)
    return page


def render(*, name: str, question: str, headline: str, sections: Sequence[Section], beside: str = "") -> str:
    """The page as HTML that needs nothing but itself; `beside` is what must be known beside the headline."""
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
    """A figure as JSON that cannot end the element it stands in: "<" occurs in JSON within strings alone."""
    return Markup(str(figure.plot.to_json()).replace("<", "\\u003c"))


def _source_hash(script: str) -> str:
    """The one script that this is, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
