"""report.md shows its figures as files beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.report import images as images_module
from hpstudy.report import write_report
from tests.helpers.browser import in_a_browser
from tests.helpers.command_line import hpstudy


@in_a_browser
def test_report_md_shows_svg_files_that_are_there(gallery, tmp_path: Path) -> None:
    write_report(gallery("decided"), tmp_path, images=True)
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (tmp_path / "report.md").read_text())
    assert len(shown) == 2 + 3 + 1  # first screen, panels, best so far
    for name in shown:
        drawn = ET.parse(tmp_path / name).getroot()
        assert drawn.tag.endswith("svg")
        assert "GPT-3" in "".join(drawn.itertext()) or name != shown[0]


def test_without_kaleido_figures_are_refused_with_the_remedy(
    gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="--figures: kaleido is not installed here; it comes with: pip install"):
        write_report(gallery("decided"), tmp_path, images=True)


@in_a_browser
def test_the_report_command_draws_figures_on_request_alone(gallery) -> None:
    root = gallery("pruned").store.root
    args = ("report", "pruned", "--runs", root.parent)
    assert hpstudy(*args).code == 0
    assert "![" not in (root / "report" / "report.md").read_text()
    assert hpstudy(*args, "--figures").code == 0
    assert "![Validation loss](figures/validation-loss.svg)" in (root / "report" / "report.md").read_text()
    assert (root / "report" / "figures" / "validation-loss.svg").exists()
