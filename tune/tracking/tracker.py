"""What a tracker is: it shows a search in another program while it runs. Knows no such program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results

Say = Callable[[str], None]
"""Shows a line to the person who runs the search, as a warning."""


class Tracker(Protocol):
    """Is told of one driver session of a search, in a thread of its own in the child process.

    What it raises is shown in one line and ends it alone. The process may be killed between any two
    lines of it, and has seconds once the driver session ends. A later driver session tells a new
    tracker everything again, so it has to know, or to find out, what it has shown already.
    """

    name: str
    """What people call it."""

    def begin_search(self) -> None:
        """Connects, or makes its files. Called once, first."""

    def report(self, record: TrialRecord) -> None:
        """Shows a running trial: when it begins, and when its curve has new reports. A trial that
        lost work shortens its curve, then reports again what it lost."""

    def end_trial(self, record: TrialRecord) -> None:
        """Shows the end of a trial; called once for each, also for what ended before this driver
        session. A state that is not in `ENDED` means interrupted: a later one goes on with it."""

    def end_search(self, results: Results | None) -> None:
        """Shows the results, and returns when all is sent; None if the search was interrupted."""

    def close(self) -> None:
        """Ends what it started, files and processes. Called last, also after an error."""
