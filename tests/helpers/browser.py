"""Opens a page in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def opened(page: Path, profile: Path) -> str:
    """The page's DOM after its scripts ran. Asserts that the console stayed empty.

    The page's own policy forbids every request and every other script, and the console would report an attempt.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]
    flags += ["--window-size=1400,9000", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout
