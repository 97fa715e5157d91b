"""The truth of a search: one record a trial.

Knows no Ray and no Optuna. A record is rewritten whole and atomically at every report. When a trial
begins and when it ends the disk is waited for, so a power cut takes at most the last reports of
trials that were running.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from dpo_train.storage.files import write_atomically, write_durably, write_here
from tune.config.objective import Objective, Report
from tune.config.space import Point
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.document import Document, Name
from tune.run_folder.held_out import HeldOutFiles
from tune.run_folder.judge import Judge
from tune.run_folder.leaders import Leaders
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import RunInfo
from tune.run_folder.standings import Standings
from tune.run_folder.step import Step

State = Literal["finished", "stopped", "failed", "running", "pending", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
ENDED = STATES[:3]
"""The others may go on. No record is written as `interrupted`: whoever reads those of a search
that nobody drives now says so of the ones that have not ended."""

_LEAST_TOKENS = 64
"""Less than a pair has."""


class TrialRecord(Document):
    id: Name
    state: State = "pending"
    config: Point
    """The values of the active axes, by dotted path."""
    metrics: Report = {}
    """The best report by `winner_rule.py`; with two objectives by the first."""
    curve: list[Report] = []
    """Every report, in the order of pairs_seen."""
    error: str | None = None
    began: float | None = None
    """Unix time at which a worker first took the trial."""
    ended: float | None = None
    """Unix time of its end."""
    seconds: float = 0.0
    """Time that it held its resources, over all driver sessions."""
    cloned_from: Name | None = None
    """The trial whose point a person had tried again, with changes."""
    request: Name | None = None
    """The request that asked for this clone, in the run folder's `requests/`."""
    warm: bool = False
    """Whether an earlier version started it from the exported weights of `cloned_from`, in place of
    the base's. Its configuration alone does not give its numbers."""
    confirms: Name | None = None
    """The trial whose configuration is trained here once more, with another seed."""
    micro_batch: int | None = None
    """How many pairs went through the model at once, if not a whole batch."""
    reference_pairs: int = 0
    """Pairs whose reference log-probs this trial's process computed before it began."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def pairs_seen(self) -> int:
        return int(self.curve[-1]["pairs_seen"]) if self.curve else 0

    @property
    def pairs_at_best_report(self) -> int | None:
        """None where nothing was measured."""
        return int(self.metrics["pairs_seen"]) if "pairs_seen" in self.metrics else None


class Records:
    """The records of one run folder, in memory and on disk."""

    def __init__(self, folder: RunFolder, objective: Objective) -> None:
        self.folder = folder
        self.objective = objective
        self.run = RunInfo.read(folder)
        self.held_out = HeldOutFiles(folder, self.run.prepared_folder)
        """What each held-out pair had at each report."""
        self.judge = Judge(objective, self.held_out)
        """Puts reports in order."""
        self.standings = Standings(objective, Leaders(objective, self.held_out, self.judge))
        """Counts over all records, and the best of them."""
        self.trials: dict[str, TrialRecord] = {}
        self.damaged: list[DamagedFile] = []
        """Records that can't be read. Their trials are as if they had never begun."""
        for record in read_records(folder, self.damaged.append):
            self._take(record)
        files = folder.trials.glob("*.json*")
        self._lost_names = {path.name.partition(".json")[0] for path in files}
        """Of records that were damaged too: what else is kept of such a trial isn't another's."""
        self._session_began = time.monotonic()
        self.unwritten: OSError | None = None
        """Why a record could not be written: what is on disk is the truth, not what is here."""
        self.memory_kills = 0
        """How often Ray's memory monitor has ended Ray Tune in this driver session, without a
        report since."""

    def begin_driver_session(self) -> None:
        for part in self.folder.trials.glob(".*.part"):
            part.unlink(missing_ok=True)  # of a driver that was killed as it wrote
        now = time.time()
        self._session_began = time.monotonic()
        self.run.driver_sessions.append((now, now))
        self.standings.begin_driver_session()
        self._write_run()

    def touch(self) -> None:
        """Notes that the driver is alive; what the budget of hours counts."""
        began = self.run.driver_sessions[-1][0]
        # A clock that is set while the search runs changes nothing of its budget.
        self.run.driver_sessions[-1] = (began, began + time.monotonic() - self._session_began)
        self._write_run()

    def halve_tokens(self, tokens: int) -> bool:
        """Notes that memory ran out in passes of so many tokens, 0 if that isn't known: from now on
        none has more than half. Returns False if there is no less.

        Several trials of one engine tell the same death, which halves once.
        """
        half = tokens // 2
        if half < _LEAST_TOKENS:
            return False
        self.run.most_tokens = min(half, self.run.most_tokens or half)
        self._write_run()
        return True

    def next_id(self) -> str:
        number = len(self.trials)
        while True:
            name = f"{self.run.prefix}-{number:03d}"
            if name not in self._lost_names and name not in self.trials:
                return name
            number += 1

    @property
    def seconds_spent(self) -> float:
        """The seconds of all driver sessions, this one until now, by a clock that nobody sets."""
        earlier = sum(seen - began for began, seen in self.run.driver_sessions[:-1])
        return earlier + time.monotonic() - self._session_began

    @property
    def study_name(self) -> str:
        """Under which Optuna's storage keeps this search; no other has it."""
        return f"{self.folder.name}-{self.run.prefix}"

    @property
    def proposed(self) -> int:
        """How many trials of the configuration have begun: all `searched` but `clones`."""
        return self.standings.searched - self.standings.clones

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search itself."""
        return [record for record in self.trials.values() if record.confirms is None]

    @property
    def confirmations(self) -> list[TrialRecord]:
        """The finalists' runs with other seeds."""
        return [self.trials[trial_id] for trial_id in self.standings.confirmations]

    def add(self, trial_id: str, point: Point, **origin: str | None) -> TrialRecord:
        return self._write(TrialRecord(id=trial_id, config=point, **origin))

    def begin(self, trial_id: str) -> None:
        self._write(self.trials[trial_id].model_copy(update={"state": "running"}), write_durably)

    def report(self, trial_id: str, step: Step) -> bool:
        """Adds the report of a step; False if the trial had one at these pairs_seen before, which
        it replaces.

        A trial that went on from its saved state reports again what it lost.
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
        ended = {"state": state, "error": error, "ended": time.time()}
        self._try(lambda: self.held_out.make_durable(trial_id))
        return self._write(self.trials[trial_id].model_copy(update=ended), write_durably)

    def reopen(self, trial_id: str, saved_pairs: int) -> TrialRecord:
        """Cuts an unended trial's curve back to its saved state, from which it goes on."""
        record = self.trials[trial_id]
        curve = [point for point in record.curve if point["pairs_seen"] <= saved_pairs]
        best = self.judge.best_report(trial_id, curve)
        cut = {"state": "pending", "curve": curve, "metrics": best}
        return self._write(record.model_copy(update=cut))

    def find(self, trial_id: str) -> TrialRecord:
        """The record that a person names. Raises InputError."""
        if trial_id not in self.trials:
            known = ", ".join(self.trials) or "none yet"
            raise InputError(f"{self.folder} has no trial {trial_id!r}; trials: {known}")
        return self.trials[trial_id]

    def open_trials(self) -> list[TrialRecord]:
        return [self.trials[trial_id] for trial_id in self.standings.open]

    def count(self, *states: str) -> int:
        return sum(self.standings.states[state] for state in states)

    def ranked(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """The best first, each by its best report; then those that can't win, then those that were
        not measured."""
        records = list(records)
        rivals = [record for record in records if record.metrics and not self.is_out(record.id)]
        order = self.judge.best_first([(record.id, record.metrics) for record in rivals])
        out = [record for record in records if record.metrics and self.is_out(record.id)]
        unmeasured = [record for record in records if not record.metrics]
        return [rivals[index] for index in order] + out + unmeasured

    def is_out(self, trial_id: str) -> bool:
        """Whether a trial can't win whatever it reported: with two objectives one that failed."""
        return self.objective.second is not None and self.trials[trial_id].state == "failed"

    def front(self) -> list[TrialRecord]:
        """With two objectives the trials of the search that no other beats in one without losing in
        the other, each by its best report, the best first, those that failed left out; empty with
        one objective."""
        if self.objective.second is None:
            return []
        measured = [
            record
            for record in self.ranked(self.searched)
            if record.metrics and not self.is_out(record.id)
        ]
        numbers = self.objective.front_numbers([record.metrics for record in measured])
        return [record for record, number in zip(measured, numbers, strict=True) if number == 0]

    def best(self) -> TrialRecord | None:
        """Of the search's own trials that were measured and may win, by `Standings.best`."""
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


def read_records(
    folder: RunFolder, on_damaged: Callable[[DamagedFile], None]
) -> Iterator[TrialRecord]:
    """The trial records of a run folder, in the order of their numbers. `on_damaged` is told of
    those that can't be read."""
    paths = folder.trials.glob("*.json")
    for path in sorted(paths, key=lambda path: (len(path.stem), path.stem)):
        try:
            record = TrialRecord.model_validate_json(path.read_bytes())
            if record.id != path.stem:
                raise ValueError(f"it says that it is {record.id!r}")
        except (OSError, ValueError) as error:
            on_damaged(DamagedFile(path, error))
            continue
        yield record
