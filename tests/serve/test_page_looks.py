"""The page can be read in both colour schemes, and nothing is cut off on a phone or a desktop."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.helpers.app_server import Server
from tests.helpers.chat_page import ask, press, prompt_box
from tests.helpers.page_looks import CUT, LOW_CONTRAST
from tests.helpers.scripted_api import Script
from tests.serve.conftest import Open
from tests.serve.test_page_content import MARKDOWN

pytestmark = pytest.mark.slow

TABLE = f"| {'column | ' * 12}\n|{'--|' * 12}\n"
LONG = f"{'Averylongword' * 30}\n\n{TABLE}\n```\n{'x' * 300}\n```"


def states(page: Page, script: Script) -> list[tuple[str, Any, Any]]:
    """Go through all states of the page. Return low contrasts and cut texts of each state."""
    found: list[tuple[str, Any, Any]] = []

    def look(state: str) -> None:
        count, low = page.evaluate(LOW_CONTRAST)
        assert count > 15
        found.append((state, low, page.evaluate(CUT)))

    look("empty")
    press(page, "Settings")
    look("settings")
    press(page, "Close")
    script.answers |= {"Markdown?": MARKDOWN, "Long?": LONG}
    ask(page, "Markdown?")
    look("an answer")
    page.get_by_label("Compare with").select_option("base")
    ask(page, "Long?")
    look("two answers")
    script.refusal = (503, {}, {"message": "busy"})
    ask(page, "w" * 300)
    look("an error")
    script.refusal, script.is_endless = None, True
    prompt_box(page).fill("Endless?")
    press(page, "Generate")
    page.get_by_text("on and on").first.wait_for()
    look("being written")
    press(page, "Stop")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_every_text_can_be_read(
    open_page: Open, scripted: Server, script: Script, width: int, scheme: str
) -> None:
    page = open_page(scripted.url, width, scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert [
        (state, low, cut) for state, low, cut in states(page, script) if low or cut != [0, []]
    ] == []


def test_two_answers_stand_below_each_other_on_a_phone(open_page: Open, scripted: Server) -> None:
    page = open_page(scripted.url, 390)
    page.get_by_label("Compare with").select_option("base")
    ask(page, "one")
    above, below = (box.bounding_box() for box in page.locator(".answer").all())
    assert above
    assert below
    assert below["y"] >= above["y"] + above["height"]
