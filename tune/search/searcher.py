"""The Ray Tune searcher of a search: it proposes trials, using the search's Optuna study.

It names trials by our ids and writes everything into the records first. After a restart it is made
again from the records, so its own `save` and `restore` do nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from dpo_train.errors import InputError, StoreError
from tune.config.objective import Report
from tune.config.schema import SearchConfig
from tune.config.space import Point, grid, point_key
from tune.run_folder import trial_state
from tune.run_folder.inbox import Inbox, Request
from tune.run_folder.records import Records
from tune.run_folder.trial_record import State, TrialRecord
from tune.search import choose_winner
from tune.search.final_tasks import FinalTasks
from tune.search.progress import Progress
from tune.search.resume import EXHAUSTED
from tune.search.study import SearchStudy
from tune.workers.tasks import TrainTask, to_tune

_FALSE_STARTS = 3
"""How many processes of a trial may die before the trial begins."""


class StudySearcher(Searcher):
    """Proposes, in this order: open trials of an earlier driver session, clones, the YAML's points,
    the sampler's points, the finalists' new seeds, the final tasks."""

    def __init__(
        self,
        config: SearchConfig,
        records: Records,
        final_tasks: FinalTasks,
        progress: Progress,
        capacity: Callable[[], int],
    ) -> None:
        super().__init__()
        self._capacity = capacity
        self._config = config
        self._records = records
        self.final_tasks = final_tasks
        self.progress = progress
        self.inbox = Inbox(records.folder)
        self._study = SearchStudy(config, records)
        self._total = config.total_trials
        self._listed = config.first_points if config.repeat_points else config.given_points
        """Points that are tried before the sampler proposes any."""
        self._grid = grid(config.space)[::-1] if config.sampler.name == "grid" else None
        """Points of the grid that may still be untried, in reverse: the next one is the last."""
        self._ids: dict[str, str] = {}
        self._open: set[str] = set()
        self._unended = records.open_trials()
        self._false_starts: Counter[str] = Counter()
        self.stop_reason = ""
        """Why no trial starts any more: all were proposed, or `budget_spent`."""
        self.budget_spent = ""
        """Why running trials stop at their next step; empty while they go on."""

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **_: Any) -> bool:
        """Accept Ray Tune's properties; the configuration has our own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next task; None to be asked again, FINISHED if there will be no more."""
        # --- how many trials may be open ---
        # A process that becomes free should get a trial at once, and a growing cluster adds a node
        # only if a trial waits, so we keep one more open than can run.
        most = min(self._config.resources.at_once or math.inf, self._capacity() + 1)
        if self.final_tasks.was_given:
            return Searcher.FINISHED
        if len(self._open) >= most:
            return None

        # --- a final task, if there is no trial to start and all have ended ---
        record = None if self.spent_budget() else self._next_record()
        if record is None:
            if self._open:
                return None
            wait = None if self.final_tasks.is_waiting else Searcher.FINISHED
            task = self.final_tasks.task()
            return to_tune(task) if task else wait

        # --- or the next trial ---
        if record.confirms is None:
            self._study.ask_again(record)
        self._ids[trial_id] = record.id
        self._open.add(record.id)
        self._records.begin(record.id)
        return to_tune(
            TrainTask(
                trial=record.id,
                run=self._records.folder.location,
                point=record.config,
                confirms=record.confirms,
                micro_batch=record.micro_batch,
                most_tokens=self._records.run.most_tokens,
                at_once=self._config.resources.at_once,
            )
        )

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended. The scheduler has already written it into the record."""
        if trial_id in self._ids:  # otherwise this is a final task
            record = self._records.trials[self._ids[trial_id]]
            self._open.discard(record.id)
            if record.confirms is None:
                self._study.tell(record)

    def report(self, trial_id: str, report: Report) -> None:
        """Tell Optuna a trial's report."""
        self._study.report(trial_id, report)

    def propose_again(self, trial_id: str) -> bool:
        """Queue a trial again.

        Its process died before the trial began, and then Ray Tune gives the trial up. Return False
        if that has happened too often.
        """
        self._false_starts[trial_id] += 1
        if self._false_starts[trial_id] > _FALSE_STARTS:
            return False
        self._unended.append(self._records.trials[trial_id])
        return True

    def spent_budget(self) -> str:
        """Return which budget is spent; empty if none is. End the search when one is."""
        if self.budget_spent:
            return self.budget_spent
        budget = self._config.budget
        if budget.hours and self._records.seconds_spent >= 3600 * budget.hours:
            self.end_search(f"budget.hours: {budget.hours:g} spent")
        if self._records.standings.failures_in_a_row >= budget.failures_in_a_row:
            self.end_search(f"budget.failures_in_a_row: {budget.failures_in_a_row} trials failed")
        return self.budget_spent

    def end_search(self, reason: str) -> None:
        """Start no more trials, and let running ones stop at their next step. Trials of an earlier
        driver session that wait to go on are stopped now."""
        self.stop_reason = self.budget_spent = reason
        for record in self._unended:
            state: State = "stopped" if record.curve else "failed"
            self.progress.print_end(self.end_trial(record.id, state, reason))
        self._unended = []

    def end_trial(self, trial_id: str, state: State, error: str | None) -> TrialRecord:
        """Record how a trial ended, and remove its requests and its saved state."""
        record = self._records.end(trial_id, state, error)
        with contextlib.suppress(StoreError):  # the next driver session removes what is left
            self.inbox.drop(trial_id)
            trial_state.drop_state(self._records.folder, trial_id)
        return record

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the records hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the records hold everything."""

    def _next_record(self) -> TrialRecord | None:
        if self._unended:
            return self._unended.pop(0)
        while clone := self.inbox.next_clone():
            if record := self._new_clone(*clone):
                return record
        return self._next_proposal() or self._next_confirmation()

    def _next_proposal(self) -> TrialRecord | None:
        """Return the next trial that the configuration allows; None if there is none."""
        total = self._total
        while self._records.proposed < total:
            trial_id = self._records.next_id()
            point = self._next_point(trial_id)
            if point is None:
                self._end_proposals(f"{self._records.proposed} of {total} trials")
                return None
            record = self._records.add(trial_id, point)
            try:
                self._config.trial(record.config)
            except InputError as error:  # each value is valid, but not this combination
                message = str(error).removeprefix("override: ")
                record = self._records.end(trial_id, "failed", message)
                self._study.tell(record)
                self.progress.print_end(record)
                continue
            return record
        self.stop_reason = f"all {total} trials"
        return None

    def _next_point(self, trial_id: str) -> Point | None:
        """Return the next listed point, or one of the grid or the sampler that no trial has; None
        if every point of the space was tried."""
        number, tried = self._records.proposed, self._records.standings.points
        if number < len(self._listed):
            return self._study.ask(trial_id, self._listed[number])
        if self._config.repeat_points:
            return self._study.ask(trial_id)
        if self._grid is not None:
            while self._grid and point_key(self._grid[-1]) in tried:
                self._grid.pop()
            return self._study.ask(trial_id, self._grid[-1]) if self._grid else None
        untried = self._config.untried_point(tried.keys())
        return None if untried is None else self._study.ask_new(trial_id, untried)

    def _end_proposals(self, count: str) -> None:
        """Print once that the search ends with fewer trials than configured."""
        if not self.stop_reason:
            self.progress.say(f"the search ends with {count}: {EXHAUSTED}")
        self.stop_reason = f"every point of the space tried: {count}"

    def _next_confirmation(self) -> TrialRecord | None:
        """Return a finalist's next run with a new seed, once no trial of the search is open."""
        if any(record.confirms is None for record in self._records.open_trials()):
            return None
        if run := choose_winner.next_run(self._config, self._records):
            trial_id, point = run
            return self._records.add(self._records.next_id(), point, confirms=trial_id)
        return None

    def _new_clone(self, folder: Path, request: Request) -> TrialRecord | None:
        trial_id = self._records.next_id()
        record = None
        # A driver that was killed may have recorded this clone without removing the request, so we
        # look for it in the records first.
        if all(existing.request != folder.name for existing in self._records.trials.values()):
            record = self._records.add(
                trial_id,
                self._study.ask(trial_id, request.point),
                cloned_from=request.trial,
                request=folder.name,
            )
        self.inbox.taken(folder)
        return record
