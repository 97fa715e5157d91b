"""Parses a report like a browser, and loads its figures and its table from their JSON."""

import json
from html.parser import HTMLParser
from typing import Any

from tune.report import page
from tune.report.figures import draw
from tune.report.scene import Drawn, Scene
from tune.run_folder.results import Results


class Page(HTMLParser):
    """The content of a page: ids, addresses, text, and the content of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(html)
        data = json.loads(self.scripts[0])
        self.figures: dict[str, Any] = data["figures"]
        self.table: dict[str, Any] = data["table"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in = tag
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""
        if tag in ("td", "th"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


def parsed(results: Results) -> Page:
    """Render a report and parse it."""
    return Page(page.render(results))


def drawn(results: Results) -> dict[str, Drawn]:
    """Draw the figures of a report."""
    return draw(Scene(results))


def names(figure: dict[str, Any]) -> set[str]:
    """Return the names of a figure's traces."""
    return {trace["name"] for trace in figure["data"] if "name" in trace}


def numbers(figure: dict[str, Any]) -> set[int]:
    """Return the indices in `results.trials` of all trials that a figure shows."""
    return {
        number
        for trace in figure["data"]
        for number in trace.get("customdata", ())
        if number is not None
    }
