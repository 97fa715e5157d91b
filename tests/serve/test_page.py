"""The page as a person uses it: a real Chromium, by mouse and by keyboard."""

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from dpo_train import sample
from serve import api, models, ui
from serve.models import ServedModel
from tests.helpers.app_server import Server

KEY = "a key that is long enough"
QUESTION = "Is it true that goldfish forget everything in seconds?"
EXAMPLE = 'Is "the moon" </script> cheese?'
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium"),
]


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, ServedModel]]:
    places = [f"winner={sample.MODEL}", f"base={sample.MODEL}"]
    loaded = models.load(places, slots=3, context=256, max_waiting=4)
    yield loaded
    loaded["winner"].engine.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def app(loaded: dict[str, ServedModel], key: str | None = None) -> Any:
    made = api.create_app(loaded, key)
    ui.mount(made, list(loaded), "By Jo", ["Do bats see?", EXAMPLE])
    return made


@pytest.fixture(scope="module")
def server(loaded: dict[str, ServedModel]) -> Iterator[Server]:
    with Server(app(loaded)) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url)
    yield page
    context.close()
    assert wrong == []


def answered(server: Server, prompt: str, **asked: object) -> str:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 200, **asked}
    text = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()["text"]
    assert text
    return str(text)


def prompt(page: Page) -> Locator:
    return page.get_by_label("Prompt", exact=True)


def box(page: Page, name: str) -> Locator:
    return page.locator(f"#{name} textarea")


def test_a_prompt_is_answered_as_it_is_written(page: Page, server: Server) -> None:
    expect(page.get_by_text("By Jo")).to_be_visible()
    expected = answered(server, QUESTION)
    prompt(page).fill(QUESTION)
    seen = page.evaluate_handle(
        """() => {
            const field = document.querySelector("#answer textarea"), seen = new Set();
            setInterval(() => seen.add(field.value), 1);
            return seen;
        }"""
    )
    page.get_by_role("button", name="Generate").click()
    expect(box(page, "answer")).to_have_value(expected)
    assert seen.evaluate("seen => seen.size") > 2
    expect(box(page, "other")).to_be_hidden()


def test_both_answers_stand_below_each_other_on_a_phone(page: Page, server: Server) -> None:
    page.get_by_text(EXAMPLE).click()
    expect(prompt(page)).to_have_value(EXAMPLE)
    page.get_by_role("button", name="Compare").click()
    for name in ("answer", "other"):
        expect(box(page, name)).to_have_value(answered(server, EXAMPLE))
    above, below = (box(page, name).bounding_box() for name in ("answer", "other"))
    assert above
    assert below
    assert below["y"] > above["y"] + above["height"]
    assert below["x"] + below["width"] <= 390
    page.get_by_role("button", name="Generate").click()
    expect(box(page, "other")).to_be_hidden()


def test_the_keyboard_is_enough(page: Page, server: Server) -> None:
    prompt(page).focus()
    page.keyboard.type("Do bats see?")
    page.keyboard.press("Shift+Enter")
    expect(box(page, "answer")).to_have_value(answered(server, "Do bats see?"))
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()


def test_what_goes_wrong_is_said_in_the_box(page: Page, server: Server) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(box(page, "answer")).to_have_value("Type a prompt first.")
    long = "Do bats see? " * 8  # with 200 more tokens it is longer than the context of 256
    prompt(page).fill(long)
    page.get_by_role("button", name="Generate").click()
    expect(box(page, "answer")).to_have_value(answered(server, long, max_tokens=None))
    prompt(page).fill(long * 9)
    page.get_by_role("button", name="Generate").click()
    expect(box(page, "answer")).to_have_value(
        "error: 441 tokens of prompt and 200 of answer are more than the context of 256"
    )


def test_the_browser_asks_for_the_key(browser: Browser, loaded: dict[str, ServedModel]) -> None:
    with Server(app(loaded, KEY)) as server:
        context = browser.new_context(http_credentials={"username": "any", "password": KEY})
        page = context.new_page()
        page.goto(server.url)
        prompt(page).fill(QUESTION)
        page.get_by_role("button", name="Generate").click()
        expect(box(page, "answer")).not_to_have_value("")
        assert "error" not in box(page, "answer").input_value()
        context.close()
        stranger = browser.new_context()
        with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):
            stranger.new_page().goto(server.url)
        stranger.close()
