"""`report.html`: a search on one page that opens offline, made from its results alone.

Knows no Ray, and imports Plotly when a page is made. `page.html` is the frame: style, and
the script that draws the figures.
"""

from __future__ import annotations

import contextlib
import string
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from dpo_train.errors import one_line
from dpo_train.storage import mirror
from dpo_train.storage.files import write_atomically
from tune.report import html, sections, winner_section
from tune.run_folder.results import Results

_PAUSE_SECONDS = 60.0
_SHARE = 50
"""Between two refreshes lies at least so many times what one took: under 2 % of one core."""


def write(results: Results) -> Path:
    """Writes `report.html` into the run folder of the results and returns its path."""
    path = results.folder / "report.html"
    write_atomically(path, render(results))
    return path


def write_or_warn(folder: Path, current: Callable[[], Results]) -> None:
    """A report that can't be written costs a line, not the search that was paid."""
    try:
        write(current().at(folder))
    except Exception as error:
        print(
            f"warning: the report could not be written ({type(error).__name__}: "
            f"{one_line(error)}); to try again: dpo-tune report "
            f"{mirror.shown(folder)}",
            flush=True,
        )


@contextlib.contextmanager
def keep_fresh(
    folder: Path, current: Callable[[], Results], pause: float = _PAUSE_SECONDS
) -> Iterator[None]:
    """Writes the report of a running search now and then, in a thread beside it.

    A page of 500 trials takes a second or two. In Tune's loop that would hold up every trial; with
    the thread the loop was late by a few milliseconds mostly, and by a quarter of a second at most.
    """
    is_over = threading.Event()

    def work() -> None:
        rest = pause
        while not is_over.wait(rest):
            began = time.monotonic()
            write_or_warn(folder, current)
            rest = max(pause, _SHARE * (time.monotonic() - began))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()  # so that it can't write over the last one


def render(results: Results) -> str:
    """The page as HTML, with plotly.js in it."""
    from plotly.offline import get_plotlyjs  # slow to import

    from tune.report.figures import draw  # imports Plotly, slowly

    drawn = draw(results)
    figures: list[str] = []
    parts = [winner_section.answer(results)]
    for name, title, told in sections.sections(results):
        made = drawn.get(name, "")
        parts.append(f"<h2>{escape(title)}</h2>\n{told}")
        if isinstance(made, str):
            parts.append(html.note(made))
            continue
        places = ""
        for number, figure in enumerate(made):
            # Plotly writes `<` as \u003c: nothing in there can end the script that it stands in.
            figures.append(f'"{name}-{number}":{figure.to_json()}')
            label = f'role="img" aria-label="{escape(title)}"'
            places += f'<div class="figure" id="{name}-{number}" {label}></div>\n'
        parts.append(f'<div class="figures {name}">\n{places}</div>')
    frame = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return string.Template(frame).substitute(
        title=escape(results.name),
        body="\n".join(parts),
        figures="{" + ",".join(figures) + "}",
        plotly=get_plotlyjs(),
    )
