"""A real headless Chromium, where there is one; `.ci/run` installs it and requires it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

WIDE, PHONE = (1400, 900), (390, 844)


def chromium() -> str:
    """The browser's path; a test that asks is skipped where there is none, unless it is required."""
    names = (os.environ.get("AQX_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, filter(None, names))), None)
    if found is None:
        reason = "there is no Chromium; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("AQX_REQUIRE_CHROMIUM") else pytest.skip(reason)
    return found


@dataclass
class Seen:
    """A page and what it did behind the scenes."""

    page: Page
    messages: list[str] = field(default_factory=list)  # warnings, errors and exceptions
    requests: list[str] = field(default_factory=list)  # whatever was asked of a network


@contextlib.contextmanager
def browser_pages() -> Iterator[Callable[..., Seen]]:
    """Yield a function that opens a file in a window of a size and a colour scheme, and waits until it is drawn."""
    executable = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])

        def opened(path: Path, size: tuple[int, int] = WIDE, scheme: str = "light", touch: bool = False) -> Seen:
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=touch
            )
            page = context.new_page()
            page.set_default_timeout(120_000)
            seen = Seen(page)
            page.on("console", lambda m: seen.messages.append(m.text) if m.type in ("warning", "error") else None)
            page.on("pageerror", lambda error: seen.messages.append(str(error)))
            page.on(
                "request",
                lambda r: seen.requests.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None,
            )
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=yes]", timeout=120_000)
            return seen

        try:
            yield opened
        finally:
            browser.close()
