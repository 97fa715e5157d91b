"""The Ray Tune scheduler of a search: decides whether a trial goes on, by budgets and by rungs.

It writes every report into the records, and fills its rungs from them after a restart.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dpo_train.errors import StoreError, one_line
from dpo_train.memory import kernel_kills
from tune.config.objective import Report
from tune.config.schema import SearchConfig
from tune.report.doubts import saturated
from tune.run_folder import exports
from tune.run_folder.placements import Placement, Placements
from tune.run_folder.records import Records
from tune.run_folder.trial_record import State, TrialRecord
from tune.search import choose_winner
from tune.search.abort import AbortStopper
from tune.search.deaths import device_failure, out_of_memory_reason, why_given_up
from tune.search.early_stopping import TrialKey
from tune.search.searcher import StudySearcher
from tune.workers.gpu_share import overfull
from tune.workers.outcome import Ending, Outcome, outcome_of
from tune.workers.tasks import TrainTask, task_of, to_tune


class SearchScheduler(FIFOScheduler):
    """Records every report, stops a trial if a budget is spent, and otherwise asks the rungs."""

    def __init__(
        self,
        config: SearchConfig,
        records: Records,
        searcher: StudySearcher,
        rungs: TrialScheduler,
        stopper: AbortStopper,
    ) -> None:
        super().__init__()
        self._config = config
        self._records = records
        self._searcher = searcher
        self._progress = searcher.progress
        self._stopper = stopper
        self._broken_gpus = stopper.broken_gpus
        self._rungs = rungs
        self._known: set[str] = set()
        self._places = Placements(records.folder)
        self._tokens: dict[str, int] = {}
        """For each trial, the most tokens of a pass, as of its last report."""
        self._kills = kernel_kills()
        self._is_saturation_said = False
        self.input_error = ""
        """What a trial found to be wrong with the user's input. It ends the search."""
        for record in records.searched:
            self._replay(record)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial of the search to the rungs."""
        task = task_of(trial.config)
        if isinstance(task, TrainTask) and task.confirms is None:
            self._introduce(task.trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Record a report and return whether the trial goes on: CONTINUE or STOP."""
        task = task_of(trial.config)
        assert isinstance(task, TrainTask)  # the others have one result, their last
        trial_id = task.trial
        report = self._record(trial_id, result)
        # Ray Tune gives up a trial after a number of failures. Only failures without progress in
        # between should count, so we reset the count at each report.
        trial.run_metadata.num_failures = 0
        if wrong := overfull(self._config, report):
            self._refuse(wrong)
        if self._searcher.spent_budget() or self._searcher.inbox.stops(trial_id):
            return str(TrialScheduler.STOP)
        if self._confirms(trial_id):
            return str(TrialScheduler.CONTINUE)
        return str(self._rungs.on_trial_result(tune_controller, TrialKey(trial_id), report))

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: Mapping[str, Any]
    ) -> None:
        """Record how a trial ended, or take the result of a final task."""
        task, outcome = task_of(trial.config), outcome_of(result)
        if not isinstance(task, TrainTask):
            self._searcher.final_tasks.take(task, outcome)
            return
        match outcome.ending:
            case Ending.WRONG_INPUT:
                self._refuse(outcome.error)
                self._records.end(task.trial, "pending")
            case Ending.DISK_FULL:
                # The trial has not ended: it goes on from its last saved state.
                self._stopper.reason = outcome.error
            case Ending.FINISHED:
                report = self._record(task.trial, result)
                if task.confirms is None:
                    self._rungs.on_trial_complete(tune_controller, TrialKey(task.trial), report)
                self._end(task.trial, "finished")
            case Ending.FAILED:
                self._end(task.trial, "failed", outcome.error)
            case Ending.GOES_ON | Ending.STOPPED:
                # If another trial found an error in the input, this one is not stopped for good:
                # it goes on once the input is corrected.
                if not self.input_error:
                    self._end(task.trial, "stopped")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Handle the death of a trial's process: it goes on in another one, or has failed."""
        task, failure = task_of(trial.config), device_failure(trial)
        # Tune sets ERROR if it will start the trial again from its saved state.
        goes_on = trial.status == Trial.ERROR

        # --- a GPU that fails may be broken ---
        if failure:
            then = "; it goes on in another process" if goes_on else ""
            self._progress.say(f"{task.name}: {failure}{then}")
        is_gpu_broken = self._broken_gpus.count_failure(task.name, trial.run_metadata, failure)

        # --- the trial goes on ---
        if goes_on:
            if failure is None:
                self._go_on(trial)
            self._kills = kernel_kills()
            return

        # --- or Ray Tune has given it up ---
        error = one_line(why_given_up(trial), 300)
        has_begun = trial.status != Trial.PENDING and not is_gpu_broken
        if not isinstance(task, TrainTask):
            self._searcher.final_tasks.take(task, Outcome(Ending.FAILED, error))
        elif has_begun or not self._searcher.propose_again(task.trial):
            self._end(task.trial, "failed", error)

    def _go_on(self, trial: Any) -> None:
        """Print how a trial goes on after its process died, and make its passes smaller if memory
        ran out.

        As long as passes can be made smaller, a death for lack of memory does not count among the
        few that Tune allows: another process may have been the large one.
        """
        task = task_of(trial.config)
        trial_id = task.name
        memory_reason = out_of_memory_reason(trial, self._kills)
        died_again = trial.run_metadata.num_failures > 1  # no report since the last death
        if not (memory_reason or died_again) or not isinstance(task, TrainTask):
            self._progress.say(f"{trial_id}: its process died; it goes on in another")
            return
        tokens, old_limit = self._tokens_of(trial_id), task.most_tokens
        new_limit = old_limit
        # Else one pair is already above the limit, and a pass can't be smaller.
        if old_limit is None or tokens <= old_limit:
            if memory_reason and self._records.halve_tokens(tokens):
                trial.run_metadata.num_failures = 0
                new_limit = self._records.run.most_tokens
            elif died_again and tokens:
                # Another node's kernel may have ended it, so we give only this trial less.
                new_limit = max(1, tokens // 2)
            trial.config.update(to_tune(replace(task, most_tokens=new_limit)))
            self._tokens[trial_id] = new_limit or 0
        limit = f"; passes have at most {new_limit} tokens now" if new_limit else ""
        reason = memory_reason or "its process died again"
        self._progress.say(f"{trial_id}: {reason}; it goes on in another{limit}")

    def _tokens_of(self, trial_id: str) -> int:
        """Return the most tokens of the trial's passes, from the last look at the workers or the
        last report; 0 if unknown."""
        doing = self._progress.live.trials.get(trial_id)
        return (doing.tokens_at_once if doing else 0) or self._tokens.get(trial_id, 0)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing: the rungs keep the trial's values."""

    def debug_string(self) -> str:
        """Return nothing for Ray Tune to print."""
        return ""

    def _record(self, trial_id: str, result: Mapping[str, Any]) -> Report:
        """Write a report into the records, and pass it on to Optuna and the progress."""
        step = outcome_of(result).step
        assert step is not None
        report = step.report
        place = Placement(result["node_ip"], step.gpus, result["pid"])
        self._places.note(trial_id, place, step.began)
        self._tokens[trial_id] = step.tokens_at_once
        self._broken_gpus.note_report(step.devices)
        seen_before = self._records.trials[trial_id].pairs_seen
        is_new = self._records.report(trial_id, step)
        self._progress.add_report(trial_id, seen_before, step)
        if step.note:
            self._progress.say(f"{trial_id}: {step.note}")
        if is_new and not self._confirms(trial_id):
            self._searcher.report(trial_id, report)
        with contextlib.suppress(StoreError):  # it is tried again at the next report
            exports.prune_own_exports(self._records, trial_id)
        return report

    def _confirms(self, trial_id: str) -> bool:
        """Return whether this is a finalist's run with another seed, which no rung stops."""
        return self._records.trials[trial_id].confirms is not None

    def _refuse(self, wrong: str) -> None:
        self.input_error = wrong
        self._searcher.stop_reason = self._searcher.budget_spent = "the input is wrong"

    def _end(self, trial_id: str, state: State, error: str | None = None) -> None:
        if state == "stopped" and self._searcher.inbox.stops(trial_id):
            error = "on request"
        self._progress.print_end(self._searcher.end_trial(trial_id, state, error))
        self._warn_if_saturated()
        finalists = [record.id for record in choose_winner.finalists(self._config, self._records)]
        with contextlib.suppress(StoreError):  # it is tried again when the next trial ends
            exports.prune_exports(self._records, self._config.exports_kept, finalists)

    def _warn_if_saturated(self) -> None:
        """Warn once that the objective can't tell the best trials apart, as soon as that shows."""
        if self._is_saturation_said or self._records.standings.saturated_share < 0.5:
            return
        ended = [record for record in self._records.searched if record.has_ended]
        if warning := saturated(self._records.objective, ended):
            self._is_saturation_said = True
            self._progress.say(f"warning: {warning}")

    def _replay(self, record: TrialRecord) -> None:
        """Fill the rungs with the reports that a trial sent in an earlier driver session."""
        self._introduce(record.id)
        key = TrialKey(record.id)
        for report in record.curve:
            if self._config.stopping.name == "median":
                # If we asked the rule again, in another order, it might stop a trial that went on.
                # So we use the method that only stores the report.
                self._rungs.on_trial_complete(None, key, report)
            else:
                self._rungs.on_trial_result(None, key, report)

    def _introduce(self, trial_id: str) -> None:
        if trial_id in self._known:
            return
        self._known.add(trial_id)
        # ASHA draws the bracket from numpy's global generator. A resumed search must draw the same
        # one, so we seed the generator with the trial's id meanwhile.
        state = np.random.get_state()
        np.random.seed(zlib.crc32(trial_id.split("-")[1].encode()))
        self._rungs.on_trial_add(None, TrialKey(trial_id))
        np.random.set_state(state)
