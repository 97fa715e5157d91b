"""The Ray Tune trial: drives a session from report to report, in a process that stays warm."""

from __future__ import annotations

import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import Trainable

from dpo_train import errors
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.model import forget_base
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.storage.files import write_atomically
from dpo_train.trainers.open import open_session
from dpo_train.trainers.session import Session, with_less_at_once
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.errors import EngineLost
from tune.run_folder import exports, trial_state
from tune.run_folder.exports import ExportStamp
from tune.run_folder.folder import find_run_here
from tune.run_folder.held_out import HeldOut
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import RunInfo
from tune.run_folder.step import Step
from tune.workers import engine_session
from tune.workers.devices import devices_here, gpu_failures_named
from tune.workers.engine_actor import Opening
from tune.workers.memory_share import trial_bounds
from tune.workers.multi_gpu import Group
from tune.workers.outcome import Ending, Outcome, to_tune
from tune.workers.pulled import pulled, pulled_folders
from tune.workers.pulse import Pulse, SharedTurns
from tune.workers.tasks import EvaluateTask, Task, TestTask, TrainTask, task_of
from tune.workers.threads import limit_threads
from tune.workers.unused import leave_out_unused
from tune.workers.user_evaluation import evaluate_folder

_Search = tuple[SearchConfig, RunInfo]
_SLICE_SECONDS = 3.0
"""How long a trial trains before it checks whether it must save or stop."""


class DpoTrial(Trainable):
    """Does the task in its configuration, and answers each step with an Outcome.

    Tune tries again after an error, so we raise only errors that a new try may avoid.
    """

    _trial: TrainConfig
    _task: Task

    def setup(self, config: dict[str, Any]) -> None:
        """Take the task, but don't begin it."""
        leave_out_unused()
        # Tune may set up a process for a trial that it then gives to another, so a process must
        # change nothing before its first step.
        self._session: Session | None = None
        self._group: Group | None = None
        self._task = task_of(config)
        self._reference_pairs: int = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another task in the same process."""
        self._close()
        self._task = task_of(new_config)
        return True

    def cleanup(self) -> None:
        """Close the session before the process ends."""
        self._close()

    def step(self) -> dict[str, Any]:
        """Train to the next report, or do a final task."""
        return to_tune(self._outcome())

    def _outcome(self) -> Outcome:
        task = self._task
        if not isinstance(task, TrainTask):
            # A store may fail for a moment, so this is outside of `try`: Tune tries it again.
            self._run_info = self._find_run()
        try:
            with gpu_failures_named():
                if isinstance(task, TestTask):
                    return self._evaluate_on_test(task)
                if isinstance(task, EvaluateTask):
                    return self._call_user_evaluation(task)
                return self._train_to_next_report(task)
        except errors.DeviceFailed:
            self._session = None  # closing it would use the failed device
            raise
        except (EngineLost, RayActorError, OutOfMemoryError):
            # An engine or a member of a group died; OutOfMemoryError means that Ray's memory
            # monitor ended it. Tune tries again, perhaps on another node.
            raise
        except Exception as error:
            return self._failure(error)

    def _train_to_next_report(self, task: TrainTask) -> Outcome:
        # --- train to the next evaluation ---
        began = time.time()
        self._note = ""
        evaluation = self._advance(task)
        if evaluation is None:
            self._close()
            return Outcome(Ending.STOPPED)
        # --- export the weights if they may win; close the session at the end of the trial ---
        assert self._session is not None
        self._offer_export(task, evaluation)
        self._reported = evaluation.pairs_seen
        at_once, tokens = self._session.pairs_at_once, self._session.tokens_at_once
        total = self._session.pairs_total
        finished = self._reported >= total
        reference_pairs, self._reference_pairs = self._reference_pairs, 0
        if finished:
            self._close()
        # --- report ---
        step = Step(
            report=evaluation.report,
            began=began,
            seconds=time.time() - began,
            held_out=HeldOut.of(evaluation.held_out),
            reference_pairs=reference_pairs,
            micro_batch=None if at_once == self._trial.optim.batch_size else at_once,
            tokens_at_once=tokens,
            pairs_total=total,
            note=self._note,
            devices=self._group.devices if self._group else devices_here(),
        )
        return Outcome(Ending.FINISHED if finished else Ending.GOES_ON, step=step)

    def _advance(self, task: TrainTask) -> Evaluation | None:
        """Train to the next evaluation, and save the state when that is due. If memory runs out,
        try again with fewer pairs at once. Return None if the driver requests a stop."""
        if self._session is None:
            self._begin(task)
        else:
            self._pulse.begin_training(self._session, self._due_at)
        while True:
            try:
                if self._session is None:
                    self._open(task)
                    assert self._session is not None
                    self._pulse.begin_training(self._session, self._due_at)
                self._save_if_due()
                assert self._session is not None
                evaluation = self._session.advance_for(_SLICE_SECONDS)
                if evaluation is not None:
                    return evaluation
                if self._pulse.tell_progress(self._session, self._due_at):
                    return None
            except errors.OutOfMemory:
                if self._trial.trainer == "packed":
                    raise  # the engine has already tried with one pair at once
                self._use_less_memory()

    def _use_less_memory(self) -> None:
        """Close the session, and halve the pairs at once or switch on activation checkpointing."""
        optim, session = self._trial.optim, self._session
        at_once = session.pairs_at_once if session else optim.pairs_at_once
        self._close()
        forget_base()
        now = override(self._trial, {"optim.micro_batch_size": at_once})
        self._trial = with_less_at_once(now, self._search.resources.members)
        note = f"out of memory: it goes on with {self._trial.optim.pairs_at_once} pairs at once"
        if self._trial.optim.activation_checkpointing:
            note += " and activation checkpointing"
        self._note = note

    @property
    def _due_at(self) -> int:
        return self._trial.next_evaluation(self._reported)

    def _begin(self, task: TrainTask) -> None:
        self._id = task.trial
        self._pulse = Pulse(self._id)
        self._pulse.begin("loading the model")
        self._reference_pairs = 0
        self._run_info = self._find_run()
        self._trial = self._search.trial(task.point)
        if task.micro_batch:
            self._trial = override(self._trial, {"optim.micro_batch_size": task.micro_batch})

    def _open(self, task: TrainTask) -> None:
        self._saved_at = time.monotonic()
        self._reported = 0
        try:
            self._session = self._open_session(task)
        except Exception:
            forget_base()  # the base model in this process may have half of an adapter in it
            raise
        self._reference_pairs += self._session.reference_pairs
        self._go_on_from_saved_state()

    def _open_session(self, task: TrainTask) -> Session:
        prepared, device = self._run_info.prepared_folder, self._run_info.device
        if self._trial.trainer == "packed":
            opening = Opening(self._trial, prepared, device, task.most_tokens)
            return engine_session.EngineSession(self._id, opening)
        if self._search.resources.members > 1:
            return self._group_here().open(self._trial, prepared, device, task.most_tokens)
        if self._trial.trainer == "trl":
            from dpo_train import reference  # imports torch, slowly

            shared = reference.prepare(prepared, SharedTurns())
            self._reference_pairs += shared.computed_pairs
        # The driver may have lowered at_once to fit into memory, so we use the task's value.
        bounds = trial_bounds(self._search, task.at_once, task.most_tokens)
        return open_session(self._trial, prepared, device, memory=bounds)

    def _on_device(self, function: Any, *arguments: Any) -> Any:
        """Call a function in the process that has the trial's GPU, or the first of its GPUs."""
        if self._search.resources.members == 1:
            return function(*arguments)
        return self._group_here().first(function, *arguments)

    def _group_here(self) -> Group:
        if self._group is None or self._group.is_ended:
            self._group = Group(self._search.resources)
        return self._group

    def _find_run(self) -> RunInfo:
        self._run = find_run_here(self._task.run)
        self._search, run = _read_search(self._run)
        if self._search.trainer == "trl":
            limit_threads()
        return run

    def _evaluate_on_test(self, task: TestTask) -> Outcome:
        """Compare base and winner on the test split, where the base is already loaded."""
        with pulled_folders(self._run, self._run_info, task) as folders:
            if self._search.trainer == "packed":
                report = engine_session.evaluate_on_test(folders, self._search.model)
            else:
                from dpo_train.evaluation import test_split  # imports torch, slowly

                evaluate = test_split.evaluate_on_test
                report = self._on_device(evaluate, folders, self._search.model)
        return Outcome(Ending.FINISHED, test=report)

    def _call_user_evaluation(self, task: EvaluateTask) -> Outcome:
        """Call the user's own function with a finalist's folder."""
        assert self._search.confirm is not None
        function = self._search.confirm.evaluate
        with pulled(self._run.absolute(task.exported)) as folder:
            allowed = task.working_directory, task.allowed_packages
            numbers = self._on_device(evaluate_folder, function, folder, *allowed)
        return Outcome(Ending.FINISHED, evaluation=numbers)

    def _go_on_from_saved_state(self) -> None:
        assert self._session is not None
        saved, warning = trial_state.last_whole_state(self._run, self._id)
        self._note = warning or self._note
        exports.drop_later_exports(self._run, self._id, saved)
        if saved:
            self._reported = trial_state.reported_pairs(self._run, self._id, saved)
            self._session.restore(trial_state.saved_session(self._run, self._id, saved))

    def _offer_export(self, task: TrainTask, evaluation: Evaluation) -> None:
        assert self._session is not None
        stamp = ExportStamp(
            trial=task.trial,
            config=task.point,
            report=evaluation.report,
            configuration=task.confirms,
        )
        pairs = len(evaluation.held_out.get("eval/chosen_shift", []))
        rivals = exports.Rivals(self._search.goal, self._search.exports_kept, pairs)
        exports.offer_export(self._run, stamp, rivals, self._session.export)

    def _save_if_due(self) -> None:
        """Save the state, after a report or between two. The driver has then recorded the last
        report and let the trial go on, so no state is ahead of the trial's record."""
        assert self._session is not None
        every = 60 * self._search.save_every_minutes
        if time.monotonic() - self._saved_at < every:
            return
        done = self._session.pairs_done if every else self._reported
        is_new = done > max(trial_state.saved_pairs(self._run, self._id), default=0)
        save = self._save_session
        if is_new and trial_state.save_state(self._run, self._id, self._reported, save):
            self._saved_at = time.monotonic()

    def _save_session(self, folder: Path) -> int:
        """Save, and return the state's pairs; 0 if it is past an evaluation that is not reported
        yet, since a trial that went on from there would never report it."""
        assert self._session is not None
        saved = self._session.save(folder)
        is_past = saved >= min(self._due_at, self._session.pairs_total)
        return 0 if is_past and saved != self._reported else saved

    def _failure(self, error: Exception) -> Outcome:
        message = str(error)
        if isinstance(error, errors.DiskFull | errors.StoreError):
            return Outcome(Ending.DISK_FULL, message)
        if isinstance(error, errors.InputError):
            return Outcome(Ending.WRONG_INPUT, message)
        if not isinstance(error, errors.Diverged | errors.OutOfMemory):
            log = RunFolder.at(self._task.run).log(self._task.name)
            write_atomically(log, traceback.format_exc())
            message = f"{type(error).__name__}: {errors.one_line(error, 300)} (trials/{log.name})"
        return Outcome(Ending.FAILED, message)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
            trial_state.forget_state(self._run, self._id)


@lru_cache(maxsize=1)
def _read_search(run: RunFolder) -> _Search:
    return load_search(run.search_yaml), RunInfo.read(run)
