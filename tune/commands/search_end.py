"""The lines printed after the numbers of a finished search: where its files are, and what to do
next.
"""

from __future__ import annotations

from collections.abc import Iterator

from dpo_train.command_line import dpo_tune, python_module
from dpo_train.storage import mirror
from tune.run_folder.folder import open_run
from tune.run_folder.results import Results
from tune.search.resume import how_to_grow


def next_steps(results: Results) -> Iterator[str]:
    """Yield lines, most with a command that can be pasted. The search must have a winner."""
    folder, run = results.folder, open_run(results.folder)
    winner, numbers = mirror.shown(folder.winner), mirror.shown(folder.results_json)
    yield f"the winner is in {winner}, all numbers are in {numbers}"
    if folder.report_html.exists():
        yield f"the report: {mirror.shown(folder.report_html)}"
    if run.config.trainer != "simulated":
        if folder.url is None:
            yield f"to serve it: {python_module('serve', str(folder.winner))}"
        if results.published is None:
            repo = [] if run.config.hub.repo else ["--repo", "OWNER/NAME"]
            yield f"to publish it: {dpo_tune('push', folder.argument, *repo)}"
    if command := how_to_grow(run):
        yield f"more trials: {command}"
