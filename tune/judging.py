"""The last task of a search: the winner on the test split, by a trial's process that is warm."""

from __future__ import annotations

import json
from typing import Any

from tune import checkpoints
from tune.config import SearchConfig
from tune.records import Records

JUDGING = "judging"
"""What stands where a trial's id would, in the task that Tune is given."""


class Judging:
    """Crowns the winner once every trial has ended, then has it judged."""

    def __init__(self, config: SearchConfig, records: Records) -> None:
        self._config = config
        self._records = records
        self.was_given = False
        """Whether the task was handed out, or there was none: no trial starts any more."""
        self.is_done = False
        """Whether the search is over: the winner was judged, or there is none to judge."""
        self.stamp: dict[str, Any] | None = None
        """The winner's trial, point and report; None if nothing was exported."""
        self.verdict: dict[str, Any] = {}
        """`test` and `answers` as `dpo_train.evaluation.judge` gives them."""

    def task(self) -> dict[str, Any] | None:
        """What Tune gives to a process, once; None while a trial is open, or with no winner."""
        if self.was_given or self._records.open_trials():
            return None
        self.was_given = True
        self.stamp = checkpoints.crown(self._records.folder, self._records.objective)
        self.is_done = self.stamp is None or self._config.trainer == "simulated"
        if self.is_done:
            return None
        return {"trial": JUDGING, "run": str(self._records.folder.absolute())}

    def end(self, result: dict[str, Any]) -> None:
        """Takes the verdict. One that failed costs its numbers, not the search that was paid."""
        self.is_done = True
        self.verdict = json.loads(result.get("verdict", "{}"))
        if not self.verdict:
            print(f"warning: the winner could not be judged on test: {result['error']}", flush=True)
