"""Pages in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tab:
    """An open page, and what went wrong in it: lines of the console, errors, and requests for other files."""

    page: Page
    problems: list[str]


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser. While it is open, this thread can neither open another one nor run an event loop of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(
    browser: Browser, path: Path, *, width: int = 1400, height: int = 900, dark: bool = False, scripts: bool = True
) -> Iterator[Tab]:
    """A page in a window of its own, once it is loaded."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        permissions=["clipboard-read", "clipboard-write"],
    )
    try:
        yield _load(context, path)
    finally:
        context.close()


def _load(context: BrowserContext, path: Path) -> Tab:
    page, problems, address = context.new_page(), [], path.as_uri()
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda request: _is_own(request.url, address) or problems.append(f"request: {request.url}"))
    page.goto(address)
    return Tab(page=page, problems=problems)


def _is_own(url: str, address: str) -> bool:
    return url.partition("#")[0] == address or url.startswith(("data:", "blob:"))


def all_drawn(page: Page) -> None:
    """Waits until every figure is drawn."""
    page.wait_for_selector("html[data-drawn=all]", state="attached")


def opened(path: Path) -> str:
    """The page's DOM after its scripts ran. Asserts that nothing went wrong in it."""
    with browsing() as browser, tab(browser, path) as shown:
        all_drawn(shown.page)
        assert not shown.problems
        return shown.page.content()
