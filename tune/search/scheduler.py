"""What Ray Tune asks whether a trial goes on: budgets first, then the rungs.

It writes every report into the records, and refills its rungs from them.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dpo_train.errors import one_line
from dpo_train.memory import kernel_kills
from dpo_train.storage.object_store import StoreError
from tune.config.schema import SearchConfig
from tune.report.doubts import saturated
from tune.run_folder import exports
from tune.run_folder.held_out import HeldOut
from tune.run_folder.placements import Placements
from tune.run_folder.records import Records, State, TrialRecord
from tune.search import choose_winner
from tune.search.abort import AbortStopper
from tune.search.deaths import device_failure_reason, out_of_memory_reason, why_given_up
from tune.search.early_stopping import TrialKey, make_stopping_rule
from tune.search.final_tasks import FinalTasks
from tune.search.progress import Progress
from tune.search.searcher import StudySearcher
from tune.workers.gpu_share import overfull
from tune.workers.tasks import is_task


class SearchScheduler(FIFOScheduler):
    """Writes every report, then answers STOP where a budget is spent, then asks the rungs."""

    def __init__(
        self,
        config: SearchConfig,
        records: Records,
        searcher: StudySearcher,
        final_tasks: FinalTasks,
        progress: Progress,
        most_pairs: int,
        stopper: AbortStopper,
    ) -> None:
        super().__init__()
        self._config = config
        self._records = records
        self._searcher = searcher
        self._final_tasks = final_tasks
        self._progress = progress
        self._stopper = stopper
        self._rungs = make_stopping_rule(config, most_pairs)
        self._known: set[str] = set()
        self._places = Placements(records.folder)
        self._tokens: dict[str, int] = {}
        """By trial the most tokens of a pass, as of its last report."""
        self._kills = kernel_kills()
        self._is_saturation_said = False
        self.input_error = ""
        """What a trial found to be wrong with the user's input; ends the search."""
        for record in records.searched:
            self._replay(record)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        trial_id = trial.config["trial"]
        if not is_task(trial_id) and not self._confirms(trial_id):
            self._introduce(trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        trial_id = trial.config["trial"]
        report = self._record(trial_id, result)
        # Tune gives a trial up after so many deaths: of those, only what follows no progress.
        trial.run_metadata.num_failures = 0
        if wrong := overfull(self._config, report):
            self._refuse(wrong)
        if self._searcher.spent() or self._searcher.inbox.stops(trial_id):
            return str(TrialScheduler.STOP)
        if self._confirms(trial_id):
            return str(TrialScheduler.CONTINUE)
        return str(self._rungs.on_trial_result(tune_controller, TrialKey(trial_id), report))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        trial_id = trial.config["trial"]
        if is_task(trial_id):
            self._final_tasks.end(trial_id, result)
            return
        ended = result.get("ended")
        if ended == "wrong input":
            self._refuse(result["error"])
            self._records.end(trial_id, "pending")
            return
        if ended == "disk full":  # the trial has not ended: it goes on from its last saved state
            self._stopper.reason = result["error"]
            return
        if self.input_error and ended in (None, "", "stopped"):
            return  # stopped for another's sake: once the input is mended, it goes on
        if ended == "finished":
            report = self._record(trial_id, result)
            if not self._confirms(trial_id):
                self._rungs.on_trial_complete(tune_controller, TrialKey(trial_id), report)
        self._end(trial_id, ended or "stopped", result.get("error"))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if trial.status == Trial.ERROR:
            # Tune says so of a process that died and is tried again from its saved state.
            self._go_on(trial)
            return
        error = one_line(why_given_up(trial), 300)
        if is_task(trial.config["trial"]):
            self._final_tasks.end(trial.config["trial"], {"error": error})
        elif not (trial.status == Trial.PENDING and self._searcher.propose_again(trial)):
            self._end(trial.config["trial"], "failed", error)

    def _go_on(self, trial: Any) -> None:
        """Says how a trial goes on whose process died, with less memory where that was the reason.

        A death for lack of memory isn't counted as one of the few that Tune allows, as long as the
        passes can be made smaller: a neighbour may have been the large one.
        """
        trial_id = trial.config["trial"]
        if failure := device_failure_reason(trial):
            self._progress.say(f"{trial_id}: {failure}; it goes on in another process")
            self._kills = kernel_kills()
            return
        reason = out_of_memory_reason(trial, self._kills)
        self._kills = kernel_kills()
        again = trial.run_metadata.num_failures > 1  # without a report since the last time
        if not (reason or again) or is_task(trial_id):
            self._progress.say(f"{trial_id}: its process died; it goes on in another")
            return
        tokens, given = self._tokens_of(trial_id), trial.config["most_tokens"]
        most = given
        if given is None or tokens <= given:  # else it has one pair a pass, and can't have less
            if reason and self._records.halve_tokens(tokens):
                trial.run_metadata.num_failures = 0
                most = self._records.run.most_tokens
            elif again and tokens:
                # The kernel of another node may have ended it, so this trial alone has less.
                most = max(1, tokens // 2)
            trial.config["most_tokens"] = most
            self._tokens[trial_id] = most or 0
        said = f"; passes have at most {most} tokens now" if most else ""
        self._progress.say(
            f"{trial_id}: {reason or 'its process died again'}; it goes on in another{said}"
        )

    def _tokens_of(self, trial_id: str) -> int:
        """The most tokens of the trial's passes, as of the last look at the workers or the last
        report; 0 if they aren't known."""
        doing = self._progress.live.trials.get(trial_id)
        return (doing.tokens_at_once if doing else 0) or self._tokens.get(trial_id, 0)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None: ...

    def debug_string(self) -> str:
        return ""

    def _record(self, trial_id: str, result: dict[str, Any]) -> dict[str, float]:
        report = {
            key.removeprefix("report/"): value
            for key, value in result.items()
            if key.startswith("report/")
        }
        place = {"node": result["node_ip"], "gpus": result["gpus"], "pid": result["pid"]}
        self._places.note(trial_id, place, result["began"])
        self._tokens[trial_id] = result.get("tokens_at_once", 0)
        is_new = self._records.report(
            trial_id,
            report,
            result["seconds"],
            result["reference_pairs"],
            result["began"],
            HeldOut.from_text(result["held_out"]),
            result["micro_batch"],
        )
        if result["note"]:
            self._progress.say(f"{trial_id}: {result['note']}")
        if is_new and not self._confirms(trial_id):
            self._searcher.report(trial_id, report)
        with contextlib.suppress(StoreError):  # the next report tries again
            exports.prune_own_exports(self._records, trial_id)
        self._progress.update()
        return report

    def _confirms(self, trial_id: str) -> bool:
        """Whether it is a finalist's run with another seed, which no rung stops."""
        return self._records.trials[trial_id].confirms is not None

    def _refuse(self, wrong: str) -> None:
        self.input_error = wrong
        self._searcher.stop_reason = self._searcher.budget_spent = "the input is wrong"

    def _end(self, trial_id: str, state: State, error: str | None) -> None:
        if state == "stopped" and self._searcher.inbox.stops(trial_id):
            error = "on request"
        self._progress.ended(self._searcher.end_trial(trial_id, state, error))
        self._warn_if_saturated()
        finalists = [record.id for record in choose_winner.finalists(self._config, self._records)]
        with contextlib.suppress(StoreError):  # the next end tries again
            exports.prune_exports(self._records, self._config.exports_kept, finalists)

    def _warn_if_saturated(self) -> None:
        """Once, as soon as the trials that ended say so."""
        if self._is_saturation_said or self._records.standings.saturated_share < 0.5:
            return
        ended = [record for record in self._records.searched if record.has_ended]
        if told := saturated(self._records.objective, ended):
            self._is_saturation_said = True
            self._progress.say(f"warning: {told}")

    def _replay(self, record: TrialRecord) -> None:
        """Refills the rungs with what a trial of an earlier driver session reported."""
        self._introduce(record.id)
        key = TrialKey(record.id)
        for report in record.curve:
            if self._config.stopping.name == "median":
                # Only remembers: asked again out of its order the rule might stop what went on.
                self._rungs.on_trial_complete(None, key, report)
            else:
                self._rungs.on_trial_result(None, key, report)

    def _introduce(self, trial_id: str) -> None:
        if trial_id in self._known:
            return
        self._known.add(trial_id)
        # ASHA draws a bracket from numpy's global generator: let the trial's id decide.
        state = np.random.get_state()
        np.random.seed(zlib.crc32(trial_id.split("-")[1].encode()))
        self._rungs.on_trial_add(None, TrialKey(trial_id))
        np.random.set_state(state)
