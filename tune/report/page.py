"""Writes `report.html`: a search on one page that opens offline, made from its results, and from
the run folder if there is one.

Knows no Ray, and imports Plotly only to make a page. `page.html` is the frame and `content.html`
the text, `page.css` the style and `page.js` the script that fills the table and draws the figures.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_train.command_line import dpo_tune
from dpo_train.errors import DiskFull, one_line
from dpo_train.storage.disk import free_bytes
from dpo_train.storage.files import write_atomically
from tune.report import tables
from tune.report.doubts import doubts
from tune.report.facts import luck, most_pairs, saved, trial_yaml, verdict
from tune.report.looks import themes
from tune.report.trial_table import trial_table
from tune.run_folder.assemble import current_results
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results
from tune.run_folder.trial_record import ENDED

_HERE = Path(__file__).parent
_PAUSE_SECONDS = 60.0
_POLL_SECONDS = 0.2
_PAUSE_FACTOR = 50
"""The pause after a refresh is at least this many times its duration: under 2 % of one core."""


def write(results: Results) -> Path:
    """Writes `report.html` into the run folder of the results and returns its path.

    Raises DiskFull if the page would take space that records and weights need.
    """
    page = render(results)
    need, free = 2 * len(page), free_bytes(results.folder.path)
    if free < need:
        raise DiskFull(f"{free / 1e6:.1f} MB are free, but the page needs {need / 1e6:.1f} MB")
    write_atomically(results.folder.report_html, page)
    return results.folder.report_html


def write_or_warn(folder: RunFolder, current: Callable[[], Results]) -> None:
    """Writes the report, or prints a warning if that fails, so that the search is not lost."""
    try:
        write(current().at(folder))
    except Exception as error:
        print(
            f"warning: the report could not be written ({type(error).__name__}: "
            f"{one_line(error)}); to try again: {dpo_tune('report', folder.argument)}",
            flush=True,
        )


@contextlib.contextmanager
def keep_fresh(folder: RunFolder, pause: float = _PAUSE_SECONDS) -> Iterator[None]:
    """Refreshes the report of a running search in a child process that reads the records on disk.

    A page of 10,000 trials takes seconds. In a thread of the driver it would hold Python's lock and
    delay every event of a trial (benchmarks/RESULTS.md), so a process of its own makes it.
    """
    is_over = threading.Event()

    def work() -> None:
        rest = pause
        while not is_over.wait(rest):
            began = time.monotonic()
            # In a new session, so that Ctrl-C reaches the driver only.
            child = subprocess.Popen(
                [sys.executable, "-m", "tune.report.page", str(folder.path)], start_new_session=True
            )
            while child.poll() is None and not is_over.wait(_POLL_SECONDS):
                pass
            child.kill()  # so that it can't overwrite the final report
            child.wait()
            for partial in folder.path.glob(f".{folder.report_html.name}.{child.pid}.*.part"):
                partial.unlink(missing_ok=True)
            rest = max(pause, _PAUSE_FACTOR * (time.monotonic() - began))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def render(results: Results) -> str:
    """Returns the page as HTML, with plotly.js in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # slow to import
    from plotly.io.json import to_json_plotly
    from plotly.offline import get_plotlyjs

    from tune.report.figures import draw  # imports Plotly, slowly
    from tune.report.scene import Scene

    # The figures and the table.
    templates = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
    )
    scene = Scene(results)
    drawn = draw(scene)
    trials = trial_table(results)
    figures = {
        f"{name}-{number}": _content(figure)
        for name, made in drawn.items()
        if not isinstance(made, str)
        for number, figure in enumerate(made)
    }
    # The text around them.
    winner = results.winner
    # The page of an ended search is the same whenever it is made, so its date is the search's end.
    seconds = max((t.ended or 0 for t in results.trials), default=0) if results.ended else None
    return templates.get_template("page.html").render(
        results=results,
        ended=sum(trial.state in ENDED for trial in results.trials),
        planned=max(results.search.get("trials") or 0, len(results.trials)),
        stamp=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)),
        best=results.best(),
        verdict=verdict(results),
        luck=luck(results),
        doubts=doubts(results),
        winner_most_pairs=most_pairs(results, winner.config) if winner else None,
        recipe=trial_yaml(results) if winner and results.search else "",
        estimate=saved(results),
        tables=tables,
        drawn=drawn,
        omitted=scene.omitted,
        trials=trials,
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        # Plotly writes `<` as \u003c, so no value can close the script element around it.
        data=to_json_plotly({"figures": figures, "themes": themes(), "table": trials}),
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
    )


def _content(figure: Any) -> Mapping[str, object]:
    """Returns a figure for plotly.js, without the template, which the page's theme provides."""
    content: Mapping[str, object] = figure.to_plotly_json()
    layout = {name: value for name, value in figure.layout.to_plotly_json().items()
              if name != "template"}  # fmt: skip
    return {**content, "layout": layout}


if __name__ == "__main__":
    os.nice(10)  # the trials come first
    run = RunFolder.at(sys.argv[1])
    write_or_warn(run, lambda: current_results(run))
