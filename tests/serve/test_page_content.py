"""The page shows a model's Markdown as elements, and texts that look like scripts as text."""

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.helpers.app_server import Server
from tests.helpers.chat_page import answers, ask
from tests.helpers.scripted_api import Script, create_app
from tests.serve.conftest import MODELS, Open

pytestmark = pytest.mark.slow

MARKDOWN = r"""# Sorting *fast*

Use **`sorted`** or _list.sort_; snake_case_name and 2 * 3 * 4 stay, \*so\* does this.
A second line.

1. Pick a key:
   - `len` for length
   - `str.lower`
     whatever its case
2. Then call it:

```python
def f(x):
    return x < 1 and "**no bold**"
```

| Function | Time | a\|b |
|:--|--:|:-:|
| `sorted` | n log n | 1 |
| sort | **n** | 2 |

> Quoted
> twice

---
See [the docs](https://example.org/a_(b)) or https://example.org/x_y_z.
"""

HOSTILE = (
    "<img src=x onerror=wound()><script>wound()</script>",
    '[a](javascript:wound()) [b](data:text/html,x) [c](https://e.org/"onclick="wound())',
    "![x](https://tracker.example/pixel.png)",
    "```<script>\n</code></pre><script>wound()</script>\n```",
    "| <b>x</b> | y |\n|--|--|\n| <svg onload=wound()> | [z](vbscript:wound()) |",
    "# <iframe srcdoc='<script>parent.wound()</script>'>",
)


MUCH = (
    "> " * 500 + "deep",
    "".join("  " * depth + "- x\n" for depth in range(60)),
    "*a **b " * 800,
    "_a " * 2000,
    "`" * 3000,
    "[" * 3000,
    "# x" + " " * 3000 + "#" * 3000 + "x",
)


def html_of(page: Page) -> str:
    """Return the elements of the last answer, without attributes, and its text."""
    script = """(box) => [...box.children].map(function show(node) {
        const inside = [...node.childNodes].map((part) => part.tagName ? show(part) : part.data);
        return `<${node.tagName.toLowerCase()}>${inside.join("")}</>`;
    }).join("\\n")"""
    return str(answers(page).last.evaluate(script))


def test_markdown_becomes_elements(open_page: Open, scripted: Server, script: Script) -> None:
    script.answers["Sort?"] = MARKDOWN
    page = open_page(scripted.url)
    ask(page, "Sort?")
    head = "<tr><th>Function</><th>Time</><th>a|b</></>"
    rows = (
        "<tr><td><code>sorted</></><td>n log n</><td>1</></>"
        "<tr><td>sort</><td><strong>n</></><td>2</></>"
    )
    assert html_of(page) == "\n".join(
        (
            "<h3>Sorting <em>fast</></>",
            "<p>Use <strong><code>sorted</></> or <em>list.sort</>; snake_case_name and 2 * 3 * 4 "
            "stay, *so* does this.\nA second line.</>",
            "<ol><li><p>Pick a key:</><ul><li><p><code>len</> for length</></>"
            "<li><p><code>str.lower</>\nwhatever its case</></></></><li><p>Then call it:</></></>",
            "<div><div><span>python</><button>Copy code</></><pre><code>"
            'def f(x):\n    return x < 1 and "**no bold**"</></></>',
            f"<div><table><thead>{head}</><tbody>{rows}</></></>",
            "<blockquote><p>Quoted\ntwice</></>",
            "<hr></>",
            "<p>See <a>the docs</> or <a>https://example.org/x_y_z</>.</>",
        )
    )
    links = answers(page).locator("a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/a_(b)", "https://example.org/x_y_z",
    ]  # fmt: skip
    for link in links.all():
        assert "noopener" in str(link.get_attribute("rel"))
    expect(answers(page).locator("td.right")).to_have_text(["n log n", "n"])


def test_an_unfinished_text_shows_as_far_as_it_goes(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    for text, shown in [
        ("```py\nx = 1", "<div><div><span>py</><button>Copy code</></><pre><code>x = 1</></></>"),
        ("**bold", "<p>**bold</>"),
        ("| a | b |", "<p>| a | b |</>"),
        ("- ", "<ul><li></></>"),
        ("[a](https://e", "<p>[a](<a>https://e</></>"),
    ]:
        script.answers["Part?"] = text
        ask(page, "Part?")
        assert html_of(page) == shown


def test_deep_and_endless_marks_are_shown(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    for text in MUCH:
        script.answers["Much?"] = text
        ask(page, "Much?")
        expect(answers(page).last).not_to_be_empty()


def test_nothing_that_a_model_writes_becomes_a_script_or_loads_anything(
    open_page: Open, scripted: Server, script: Script
) -> None:
    script.answers["Bad?"] = "\n\n".join(HOSTILE)
    page = open_page(scripted.url)
    page.evaluate("() => { window.wound = () => { window.isWounded = true } }")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    ask(page, "Bad?")
    box = answers(page)
    expect(box).to_contain_text("<script>wound()</script>")
    expect(box).to_contain_text("[a](javascript:wound())")
    assert box.locator("img, script, svg, iframe, b").count() == 0
    hrefs = [str(link.get_attribute("href")) for link in box.locator("a").all()]
    assert all(href.startswith("https://") for href in hrefs)
    assert page.evaluate("window.isWounded") is None
    assert requested == [f"{scripted.url}/v1/chat/completions"]


def test_names_and_examples_and_the_author_are_texts(open_page: Open, script: Script) -> None:
    hostile = "</script><!--<script>document.title='gone'</script>\"'&amp;"
    with Server(create_app(script, [hostile, "b"], hostile, (hostile,))) as server:
        page = open_page(server.url)
        expect(page).to_have_title(f"{hostile} · dpo-tune")
        expect(page.locator("footer")).to_have_text(hostile)
        page.locator("#examples button").click()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(hostile)
        assert page.get_by_label("Model", exact=True).input_value() == hostile
        ask(page, hostile)
        expect(page.locator(".answer > h2")).to_have_text(hostile)
        expect(page.locator(".prompt")).to_have_text(hostile)
        assert script.bodies[0]["model"] == hostile


def test_the_page_takes_scripts_from_its_own_server_alone(scripted: Server) -> None:
    for path in ("", "page/page.js", "page/page.css", "page/icon.svg"):
        headers = httpx.get(f"{scripted.url}/{path}").raise_for_status().headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    for path in ("page/page.html", "page/none.js", "page/..%2fui.py"):
        assert httpx.get(f"{scripted.url}/{path}").status_code == 404


def test_no_other_host_is_asked(open_page: Open, scripted: Server) -> None:
    page = open_page("about:blank")
    requested: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: refused.append(message.text))
    page.goto(scripted.url)
    ask(page, "one")
    assert len(requested) >= 6
    assert all(url.startswith(f"{scripted.url}/") for url in requested)
    assert refused == []


def test_it_works_under_a_route_prefix(open_page: Open, script: Script) -> None:
    prefixed = Starlette(routes=[Mount("/models/one", create_app(script, MODELS))])
    with Server(prefixed) as server:
        for path in ("/models/one", "/models/one/"):
            page = open_page(f"{server.url}{path}")
            ask(page, "one")
            expect(answers(page)).to_have_text("ONE (winner)")
