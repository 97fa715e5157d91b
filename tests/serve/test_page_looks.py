"""How the page looks: contrast in both colour schemes, and nothing cut on a phone or a desk."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.helpers.app_server import Server
from tests.helpers.chat_page import ask, press, prompt_box
from tests.helpers.scripted_api import Script
from tests.serve.conftest import Open
from tests.serve.test_page_content import MARKDOWN

pytestmark = pytest.mark.slow

TABLE = f"| {'column | ' * 12}\n|{'--|' * 12}\n"
LONG = f"{'Averylongword' * 30}\n\n{TABLE}\n```\n{'x' * 300}\n```"
TEXTS = """() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        const isShown = parent.checkVisibility({visibilityProperty: true});
        const isSeen = isShown && !parent.closest("script, option, .unseen, noscript");
        if (isSeen && walker.currentNode.data.trim()) texts.push([walker.currentNode, parent]);
    }
    return texts;
}"""
LOW_CONTRAST = (
    "() => { const texts = ("
    + TEXTS
    + """)();
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return numbers(colour)[3] === 0 ? ground(node.parentElement) : colour;
    };
    const contrast = (node, pseudo) => {
        const [a, b] = [light(getComputedStyle(node, pseudo).color), light(ground(node))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const found = texts.map(([text, node]) => [text.data, contrast(node)]);
    for (const box of document.querySelectorAll("input, textarea, select")) {
        found.push([box.id || box.name, contrast(box)]);
        if (box.placeholder) found.push([box.placeholder, contrast(box, "::placeholder")]);
    }
    return [found.length, found.filter(([, ratio]) => !(ratio >= 4.5))];
}"""
)
CUT = (
    "() => { const texts = ("
    + TEXTS
    + """)();
    const isOutside = ([text, node]) => {
        if (node.closest("pre, .table")) return false;  // these scroll by themselves
        const range = document.createRange();
        range.selectNodeContents(text);
        const boxes = [...range.getClientRects()];
        const isLabel = node.closest("button") && !node.closest("#examples");
        return boxes.some((box) => box.left < 0 || box.right > innerWidth)
            || (isLabel && boxes.length > 1);
    };
    const root = document.documentElement;
    const cut = texts.filter(isOutside).map(([text]) => text.data);
    return [root.scrollWidth - root.clientWidth, cut];
}"""
)


def states(page: Page, script: Script) -> list[tuple[str, Any, Any]]:
    """Goes through what the page can show. Returns of each state the low contrasts and the cuts."""
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
