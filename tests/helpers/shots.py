"""Pictures of a page, as it looks in windows of several widths, in the dark, and on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.helpers.browser import all_drawn, browsing, tab

WIDTHS = (1400, 1024, 500)


def take_shots(path: Path, folder: Path) -> None:
    """Writes first.png, full-WIDTH.png, dark.png and print.pdf, with a print-PAGE.png each if pdftoppm is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        for width in WIDTHS:
            with tab(browser, path, width=width) as shown:
                if width == WIDTHS[0]:
                    shown.page.wait_for_timeout(500)
                    shown.page.screenshot(path=folder / "first.png")
                all_drawn(shown.page)
                shown.page.screenshot(path=folder / f"full-{width}.png", full_page=True)
                for problem in shown.problems:
                    print(f"{path}: {problem}")
        with tab(browser, path, dark=True) as shown:
            all_drawn(shown.page)
            shown.page.screenshot(path=folder / "dark.png", full_page=True)
        with tab(browser, path) as shown:
            all_drawn(shown.page)
            shown.page.pdf(path=folder / "print.pdf", format="A4")
    if converter := shutil.which("pdftoppm"):
        subprocess.run([converter, "-png", "-r", "60", folder / "print.pdf", folder / "print"], check=True)
