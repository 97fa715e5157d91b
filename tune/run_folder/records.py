"""Keeps the trial records, which are the truth of a search: one file per trial.

Knows no Ray and no Optuna. A record is rewritten atomically at every report. When a trial begins or
ends, the record is also synced to the disk, so a power cut loses at most the last reports of
running trials.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from dpo_train.storage.files import write_atomically, write_durably, write_here
from tune.config.objective import Objective
from tune.config.space import Point
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.held_out import HeldOutFiles
from tune.run_folder.judge import Judge
from tune.run_folder.leaders import Leaders
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import RunInfo
from tune.run_folder.standings import Standings
from tune.run_folder.step import Step
from tune.run_folder.trial_record import State, TrialRecord, read_records

_LEAST_TOKENS = 64
"""The fewest tokens to which a pass may be limited. A pair usually has more."""


class Records:
    """The records of one run folder, in memory and on disk."""

    def __init__(self, folder: RunFolder, objective: Objective) -> None:
        self.folder = folder
        self.objective = objective
        self.run = RunInfo.read(folder)
        self.held_out = HeldOutFiles(folder, self.run.prepared_folder)
        """The values of each held-out pair at each report."""
        self.judge = Judge(objective, self.held_out)
        """Sorts reports by the rule of the winner."""
        self.standings = Standings(objective, Leaders(objective, self.held_out, self.judge))
        """Counts over all records, and the best trials."""
        self.trials: dict[str, TrialRecord] = {}
        self.damaged: list[DamagedFile] = []
        """Records that can't be read. Their trials are treated as if they had never begun."""
        for record in read_records(folder, self.damaged.append):
            self._take(record)
        files = folder.trials.glob("*.json*")
        self._used_names = {path.name.partition(".json")[0] for path in files}
        """The ids of all record files, also of damaged ones. No new trial gets one of them."""
        self._session_began = time.monotonic()
        self.unwritten: OSError | None = None
        """The error that stopped a write. Then the disk has the truth, and these records do not."""
        self.memory_kills = 0
        """How often Ray's memory monitor killed Ray Tune since the last report of this session."""

    def begin_driver_session(self) -> None:
        """Records the start of a driver session, and clears what an earlier one left."""
        for partial in self.folder.trials.glob(".*.part"):
            partial.unlink(missing_ok=True)  # left by a driver that was killed while writing
        now = time.time()
        self._session_began = time.monotonic()
        self.run.driver_sessions.append((now, now))
        self.standings.begin_driver_session()
        self._write_run()

    def touch(self) -> None:
        """Records that the driver is alive. The budget of hours counts this time."""
        began = self.run.driver_sessions[-1][0]
        # The system's clock may be changed during a search, so we add monotonic time to the start.
        self.run.driver_sessions[-1] = (began, began + time.monotonic() - self._session_began)
        self._write_run()

    def halve_tokens(self, tokens: int) -> bool:
        """Limits passes to half of `tokens`, after memory ran out in passes of that size.

        Returns False if the limit can't be smaller, or `tokens` is 0 (unknown). Several trials of
        one engine report the same death with the same `tokens`, so the limit is halved only once.
        """
        half = tokens // 2
        if half < _LEAST_TOKENS:
            return False
        self.run.most_tokens = min(half, self.run.most_tokens or half)
        self._write_run()
        return True

    def next_id(self) -> str:
        """Returns the id for a new trial."""
        used = self._used_names | self.trials.keys()
        names = (f"{self.run.prefix}-{number:03d}" for number in count(len(self.trials)))
        return next(name for name in names if name not in used)

    @property
    def seconds_spent(self) -> float:
        """The seconds of all driver sessions, this one until now, by a monotonic clock."""
        earlier = sum(seen - began for began, seen in self.run.driver_sessions[:-1])
        return earlier + time.monotonic() - self._session_began

    @property
    def study_name(self) -> str:
        """The unique name of this search in Optuna's storage."""
        return f"{self.folder.name}-{self.run.prefix}"

    @property
    def proposed(self) -> int:
        """How many trials the search itself proposed: all but clones and confirmations."""
        return self.standings.searched - self.standings.clones

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search, without confirmations."""
        return [record for record in self.trials.values() if record.confirms is None]

    @property
    def confirmations(self) -> list[TrialRecord]:
        """The finalists' runs with other seeds."""
        return [self.trials[trial_id] for trial_id in self.standings.confirmations]

    def add(self, trial_id: str, point: Point, **origin: str | None) -> TrialRecord:
        """Writes the record of a new trial. `origin`: cloned_from, confirms and the like."""
        return self._write(TrialRecord(id=trial_id, config=point, **origin))

    def begin(self, trial_id: str) -> None:
        """Records that a trial runs."""
        self._write(self.trials[trial_id].model_copy(update={"state": "running"}), write_durably)

    def report(self, trial_id: str, step: Step) -> bool:
        """Adds the report of a step. Returns whether it is new.

        A trial that continues from its saved state repeats the reports after that state. They
        replace the earlier ones.
        """
        self.memory_kills = 0
        record, report = self.trials[trial_id], step.report
        earlier = [p for p in record.curve if p["pairs_seen"] < report["pairs_seen"]]
        is_new = len(earlier) == len(record.curve)
        curve = [*earlier, report]
        at = {int(each["pairs_seen"]) for each in earlier}
        seen = int(report["pairs_seen"])
        self._try(lambda: self.held_out.keep(trial_id, at, seen, step.held_out))
        self._write(
            record.model_copy(
                update={
                    "state": "running",
                    "curve": curve,
                    "metrics": self.judge.best_report(trial_id, curve),
                    "micro_batch": step.micro_batch,
                    "began": record.began or step.began,
                    "seconds": record.seconds + step.seconds,
                    "reference_pairs": record.reference_pairs + step.reference_pairs,
                }
            )
        )
        self.touch()
        return is_new

    def end(self, trial_id: str, state: State, error: str | None = None) -> TrialRecord:
        """Records the end of a trial."""
        ended = {"state": state, "error": error, "ended": time.time()}
        self._try(lambda: self.held_out.make_durable(trial_id))
        return self._write(self.trials[trial_id].model_copy(update=ended), write_durably)

    def reopen(self, trial_id: str, saved_pairs: int) -> TrialRecord:
        """Removes the reports after a trial's saved state, from which it continues."""
        record = self.trials[trial_id]
        curve = [point for point in record.curve if point["pairs_seen"] <= saved_pairs]
        best = self.judge.best_report(trial_id, curve)
        cut = {"state": "pending", "curve": curve, "metrics": best}
        return self._write(record.model_copy(update=cut))

    def find(self, trial_id: str) -> TrialRecord:
        """Returns the record of a trial that a user named. Raises InputError."""
        if trial_id not in self.trials:
            known = ", ".join(self.trials) or "none yet"
            raise InputError(f"{self.folder} has no trial {trial_id!r}; trials: {known}")
        return self.trials[trial_id]

    def open_trials(self) -> list[TrialRecord]:
        """Returns the trials that have not ended."""
        return [self.trials[trial_id] for trial_id in self.standings.open]

    def count(self, *states: str) -> int:
        """Returns how many trials are in these states."""
        return sum(self.standings.states[state] for state in states)

    def ranked(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Returns records sorted by their best reports, the best first.

        Excluded trials come after the others, unmeasured ones last.
        """
        records = list(records)
        measured = [record for record in records if record.metrics]
        rivals = [record for record in measured if not self.is_excluded(record.id)]
        order = self.judge.best_first([(record.id, record.metrics) for record in rivals])
        excluded = [record for record in measured if self.is_excluded(record.id)]
        unmeasured = [record for record in records if not record.metrics]
        return [rivals[index] for index in order] + excluded + unmeasured

    def is_excluded(self, trial_id: str) -> bool:
        """Returns whether a trial can't win: with two objectives, a failed one can't."""
        return self.objective.second is not None and self.trials[trial_id].state == "failed"

    def front(self) -> list[TrialRecord]:
        """Returns the trials on the Pareto front of two objectives, the best first.

        Each trial counts by its best report. Empty with one objective.
        """
        if self.objective.second is None:
            return []
        measured = [
            record
            for record in self.ranked(self.searched)
            if record.metrics and not self.is_excluded(record.id)
        ]
        numbers = self.objective.front_numbers([record.metrics for record in measured])
        return [record for record, number in zip(measured, numbers, strict=True) if number == 0]

    def best(self) -> TrialRecord | None:
        """Returns the best trial of the search by `Standings.best`; None if none may win."""
        best = self.trials.get(self.standings.best())
        return best if best and self.objective.allows(best.metrics) else None

    def _take(self, record: TrialRecord) -> None:
        self.standings.put(self.trials.get(record.id), record)
        self.trials[record.id] = record

    def _write(
        self, record: TrialRecord, write: Callable[[Path, str], None] = write_atomically
    ) -> TrialRecord:
        self._take(record)
        content = json.dumps(record.model_dump(), indent=1)
        path = self.folder.record(record.id)
        self._try(lambda: write(path, content))
        return record

    def _write_run(self) -> None:
        path = self.folder.run_json
        content = self.run.model_dump_json(indent=1, by_alias=True)
        self._try(lambda: write_here(path, content))
        mirror.put_later(path, content)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.unwritten = error
            raise
