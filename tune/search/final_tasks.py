"""The last tasks of a search, done by workers that are warm: the user's own evaluation of the
finalists, then the evaluation of the winner on the test split.
"""

from __future__ import annotations

import json
import os
from typing import Any

from dpo_train.storage import mirror
from tune.config.schema import SearchConfig
from tune.run_folder import confirmation, exports
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.records import Records
from tune.search import choose_winner
from tune.workers.tasks import EVALUATE_TASK, TEST_TASK


class FinalTasks:
    """Promotes the winner once every trial has ended, then has it evaluated on the test split."""

    def __init__(self, config: SearchConfig, records: Records) -> None:
        self._config = config
        self._records = records
        self._evaluating: set[str] = set()
        self._tried: set[str] = set()
        self.was_given = False
        """Whether the task was handed out, or there was none: no trial starts any more."""
        self.is_done = False
        """Whether the search is over: the winner was evaluated, or there is none."""
        self.stamp: dict[str, Any] | None = None
        """The winner's trial, point and report; None if nothing was exported."""
        self.confirmation: Confirmation | None = None
        """How the finalists compare, if they were trained again."""
        self.verdict: dict[str, Any] = {}
        """As `dpo_train.evaluation.test_split.evaluate_on_test` gives it."""

    @property
    def is_waiting(self) -> bool:
        """Whether an evaluation must end before there is another task."""
        return bool(self._evaluating)

    def task(self) -> dict[str, Any] | None:
        """What Tune gives to a process next; None while a trial is open, or with nothing to do."""
        if self.was_given or self._records.open_trials():
            return None
        run = mirror.name(self._records.folder.absolute())
        if asked := choose_winner.next_evaluation(self._config, self._records, self._tried):
            run_id, folder = asked
            self._tried.add(run_id)
            self._evaluating.add(run_id)
            place = {"exported": str(folder.relative_to(self._records.folder)), "cwd": os.getcwd()}
            return {"trial": EVALUATE_TASK + run_id, "run": run, **place}
        if self._evaluating:
            return None
        self.was_given = True
        self.confirmation = choose_winner.choose(self._config, self._records)
        chosen = self.confirmation.winner if self.confirmation else None
        self.stamp = exports.promote_to_winner(self._records, chosen)
        if self.stamp is None and chosen is not None:
            self.stamp = exports.promote_to_winner(self._records)
            if self.stamp is not None:
                print(
                    f"warning: no export of {chosen}, which won, is whole; the best of the others, "
                    f"of {self.stamp['trial']}, is the winner",
                    flush=True,
                )
        self.is_done = self.stamp is None or self._config.trainer == "simulated"
        if self.is_done:
            return None
        folders = {"searched": self._searched(), "sampled": self._sampled()}
        return {"trial": TEST_TASK, "run": run, **folders}

    def end(self, name: str, result: dict[str, Any]) -> None:
        """Takes what a task found. One that failed costs its numbers, not what was paid for."""
        if name.startswith(EVALUATE_TASK):
            self._end_evaluation(name.removeprefix(EVALUATE_TASK), result)
            return
        self.is_done = True
        self.verdict = json.loads(result.get("verdict", "{}"))
        if not self.verdict:
            print(
                f"warning: the winner could not be evaluated on the test split: {result['error']}",
                flush=True,
            )
        elif self.confirmation is not None and self.stamp is not None:
            is_same = self.stamp["trial"] == self.confirmation.searched
            told = self.verdict["test"] if is_same else self.verdict.get("searched", {})
            self.confirmation.searched_test = told
            for finalist in self.confirmation.finalists:
                finalist.sampled_kl = self.verdict.get("sampled_kl", {}).get(finalist.trial, {})

    def _end_evaluation(self, run_id: str, result: dict[str, Any]) -> None:
        if said := json.loads(result.get("evaluation", "{}")):
            confirmation.keep_evaluation(self._records.folder, run_id, said)
        else:
            print(f"warning: confirm.evaluate failed for {run_id}: {result['error']}", flush=True)
        self._evaluating.discard(run_id)  # last: a winner that is chosen now must see it

    def _searched(self) -> str | None:
        """The export of the search's best, where it is another."""
        if self.confirmation is None or self.stamp is None:
            return None
        folder = exports.export_of(self._records, self.confirmation.searched)
        if self.stamp["trial"] == self.confirmation.searched or folder is None:
            return None
        return str(folder.relative_to(self._records.folder))

    def _sampled(self) -> dict[str, str]:
        """By configuration the folders whose KL to the base is estimated on their own answers:
        those of finalists and winner, where a search is about the distance from the base."""
        records, stamp = self._records, self.stamp
        if stamp is None or "eval/drift" not in {part.metric for part in records.objective.parts}:
            return {}
        wanted = {exports.configuration(stamp)}
        if self.confirmation is not None:
            wanted.update(finalist.trial for finalist in self.confirmation.finalists)
        return {
            exports.configuration(stamp): str(folder.relative_to(records.folder))
            for folder, stamp in exports.exports(records)
            if exports.configuration(stamp) in wanted
        }
