"""The final tasks of a search: the user's own evaluation of the finalists, then the evaluation of
the winner on the test split. Workers do them that are already warm.
"""

from __future__ import annotations

import os
from dataclasses import replace

from dpo_train.evaluation.test_report import Numbers
from tune.config.schema import SearchConfig
from tune.run_folder import confirmation, exports
from tune.run_folder.assemble import SearchEnd
from tune.run_folder.records import Records
from tune.search import choose_winner
from tune.workers.outcome import Outcome
from tune.workers.tasks import EvaluateTask, TestTask
from tune.workers.user_evaluation import allowed_packages


class FinalTasks:
    """Promotes the winner once every trial has ended, then has it evaluated on the test split."""

    def __init__(self, config: SearchConfig, records: Records) -> None:
        self._config = config
        self._records = records
        self._evaluating: set[str] = set()
        self._tried: set[str] = set()
        self.was_given = False
        """Whether the last task was handed out, or is not needed. No trial starts after that."""
        self.is_done = False
        """Whether the search is over: the winner was evaluated, or there is none."""
        self.end = SearchEnd()
        """The result so far."""

    @property
    def is_waiting(self) -> bool:
        """Whether a running evaluation must end before the next task."""
        return bool(self._evaluating)

    def task(self) -> EvaluateTask | TestTask | None:
        """Return the next task; None while a trial is open, or if there is nothing to do."""
        if self.was_given or self._records.open_trials():
            return None

        # --- first, the user's own evaluation of each finalist ---
        run = self._records.folder.location
        evaluation = choose_winner.next_evaluation(self._config, self._records, self._tried)
        if evaluation is not None:
            run_id, folder = evaluation
            self._tried.add(run_id)
            self._evaluating.add(run_id)
            exported = self._records.folder.relative(folder)
            return EvaluateTask(run_id, run, exported, os.getcwd(), allowed_packages())
        if self._evaluating:
            return None

        # --- then choose the winner ---
        self.was_given = True
        confirmed = choose_winner.choose(self._config, self._records)
        chosen = confirmed.winner if confirmed else None
        stamp = exports.promote_to_winner(self._records, chosen)
        if stamp is None and chosen is not None:
            stamp = exports.promote_to_winner(self._records)
            if stamp is not None:
                print(
                    f"warning: {chosen} won, but has no complete export; the next best export, of "
                    f"{stamp.trial}, is the winner",
                    flush=True,
                )

        # --- and have it evaluated on the test split ---
        self.end = SearchEnd(stamp=stamp, confirmation=confirmed)
        self.is_done = stamp is None or self._config.trainer == "simulated"
        if self.is_done:
            return None
        return TestTask(run, self._best_of_search(), self._sampled())

    def take(self, task: EvaluateTask | TestTask, outcome: Outcome) -> None:
        """Take a task's outcome. If the task failed, only its numbers are missing."""
        if isinstance(task, EvaluateTask):
            self._take_evaluation(task.trial, outcome)
            return
        self.is_done = True
        test = outcome.test
        if test is None:
            print(
                f"warning: the winner could not be evaluated on the test split: {outcome.error}",
                flush=True,
            )
            return
        confirmed, stamp = self.end.confirmation, self.end.stamp
        if confirmed is not None and stamp is not None:
            is_same = stamp.trial == confirmed.searched
            confirmed.searched_test = test.test if is_same else test.searched or Numbers()
            for finalist in confirmed.finalists:
                finalist.sampled_kl = test.sampled_kl.get(finalist.trial)
        self.end = replace(self.end, test=test)

    def _take_evaluation(self, run_id: str, outcome: Outcome) -> None:
        if outcome.evaluation:
            confirmation.keep_evaluation(self._records.folder, run_id, outcome.evaluation)
        else:
            print(f"warning: confirm.evaluate failed for {run_id}: {outcome.error}", flush=True)
        # Once this is empty the winner may be chosen, so the evaluation must be stored before.
        self._evaluating.discard(run_id)

    def _best_of_search(self) -> str | None:
        """Return the export of the search's best trial, if another configuration has won."""
        confirmed, stamp = self.end.confirmation, self.end.stamp
        if confirmed is None or stamp is None:
            return None
        folder = exports.export_of(self._records, confirmed.searched)
        if stamp.trial == confirmed.searched or folder is None:
            return None
        return self._records.folder.relative(folder)

    def _sampled(self) -> dict[str, str]:
        """Return by configuration the exports whose KL from the base is estimated on sampled
        answers: those of finalists and winner, if eval/drift is an objective."""
        records, stamp = self._records, self.end.stamp
        if stamp is None or "eval/drift" not in {each.metric for each in records.objective.parts}:
            return {}
        configurations = {stamp.searched}
        if self.end.confirmation is not None:
            configurations.update(finalist.trial for finalist in self.end.confirmation.finalists)
        return {
            each.stamp.searched: records.folder.relative(each.folder)
            for each in exports.exports(records)
            if each.stamp.searched in configurations
        }
