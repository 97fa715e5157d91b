"""The driver's contact with its workers between reports: what they do, and which trials stop."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from tune.run_folder.live import Live, LiveTrial, write_live
from tune.run_folder.records import Records
from tune.search.progress import Progress
from tune.search.searcher import StudySearcher

_LOOK_SECONDS = 1.0
_WRITE_SECONDS = 5.0


class Watch:
    """Asks the coordinator once a second, and never waits for the answer."""

    def __init__(
        self, coordinator: Any, records: Records, searcher: StudySearcher, progress: Progress
    ) -> None:
        self._coordinator = coordinator
        self._records = records
        self._searcher = searcher
        self._progress = progress
        self._answer: Any = None
        self._looked_at = self._wrote_at = 0.0

    def look(self) -> None:
        """Take the coordinator's last answer, if it has come, and ask again."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()

        # --- the last answer: what the trials do ---
        if self._answer is not None:
            if not ray.wait([self._answer], timeout=0)[0]:
                return
            with suppress(RayError):  # the coordinator died and starts again
                self._progress.look(ray.get(self._answer))

        # --- the next question, which also says which trials should stop ---
        running = [record.id for record in self._records.open_trials() if record.state == "running"]
        stops = [trial for trial in running if self._searcher.inbox.stops(trial)]
        spent = bool(self._searcher.spent_budget())
        self._answer = self._coordinator.exchange.remote(running, stops, spent)

        # --- live.json, for `dpo-tune show` ---
        if time.monotonic() - self._wrote_at > _WRITE_SECONDS:
            self._wrote_at = time.monotonic()
            self._write()

    def _write(self) -> None:
        trials = {
            name: LiveTrial(
                what=doing.what,
                pairs_done=doing.pairs_done,
                next_report=doing.next_report,
                since=doing.since,
            )
            for name, doing in self._progress.live.trials.items()
        }
        reference = self._progress.reference_line()
        with suppress(OSError):  # a failed write loses nothing: the records hold all results
            write_live(
                self._records.folder, Live(at=time.time(), reference=reference, trials=trials)
            )
