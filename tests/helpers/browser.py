"""Fixtures for tests of pages: a browser, and windows in it. A conftest imports them."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium for a module, or skip its tests."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no Chromium here: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a window of its own. An error in the page's scripts fails the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open_one(url: str, width: int = 1400, scheme: str = "light", **given: object) -> Page:
        height = 900 if width > 500 else 844
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **given
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert wrong == []
