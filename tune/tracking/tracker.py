"""Defines the protocol of a tracker, which shows a running search in another program.

Knows no such program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord

Say = Callable[[str], None]
"""Shows a line to the user as a warning."""


class Tracker(Protocol):
    """Shows one driver session of a search. It runs in its own thread of the child process.

    An error that it raises is shown as one line and ends only this tracker. The process may be
    killed at any time, and has only seconds once the driver session ends. A later driver session
    calls a new tracker with everything again, so a tracker must find out what is already shown.
    """

    name: str
    """The name that users see."""

    def begin_search(self) -> None:
        """Connects, or creates files. Called first, once."""

    def report(self, record: TrialRecord) -> None:
        """Shows a running trial. Called when the trial begins and when its curve has new reports.

        The curve of a trial that lost work becomes shorter, then the trial repeats these reports.
        """

    def end_trial(self, record: TrialRecord) -> None:
        """Shows the end of a trial. Called once for each, also if it ended in an earlier session.

        A state that is not in `ENDED` means interrupted: a later driver session continues it.
        """

    def end_search(self, results: Results | None) -> None:
        """Shows the results, None if the search was interrupted. Returns when all is sent."""

    def close(self) -> None:
        """Closes files and ends processes. Called last, also after an error."""
