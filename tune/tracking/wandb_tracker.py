"""Shows a search in Weights & Biases: one run a trial and one for the search, all in one sweep.

It writes only `wandb.json` and `wandb/` in the run folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Collection
from pathlib import Path

from dpo_train.errors import one_line
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results
from tune.run_folder.run_info import RunInfo
from tune.run_folder.trial_record import ENDED, TrialRecord
from tune.tracking import wandb_client, wandb_payload
from tune.tracking.tracker import Say
from tune.tracking.wandb_files import Memory, folders_of, mark_unsent

_CONNECT_SECONDS = 6.0
"""Time for the login and the sweep together."""


class WandbTracker:
    """Sends runs to a server while trials train, or writes each run to disk when its trial ends.

    Problem: when the server is lost, the client can't open a run on disk that it failed to open
    online. So another tracker, the heir, takes over in a new process and writes to disk. The parent
    keeps the runs that it has open, and gives the heir their ids.
    """

    name = "W&B"

    def __init__(
        self,
        folder: RunFolder,
        config: SearchConfig,
        say: Say,
        parents_runs: Collection[str] | None = None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._say = say
        self._is_heir = parents_runs is not None
        self._parents_runs = parents_runs or ()
        self._open: dict[str, wandb_client.OpenRun] = {}
        self._ending: dict[str, TrialRecord] = {}
        """Records of ended trials whose last upload is not over."""
        self._cut_off: list[TrialRecord] = []
        """Trials whose end the server did not receive."""
        self._heir: subprocess.Popen[bytes] | None = None

    def begin_search(self) -> None:
        """Connects if the configuration says online. Without a server everything goes to disk."""
        (self._folder.path / "wandb").mkdir(exist_ok=True)
        self._memory = Memory.of(self._folder)
        is_online = self._config.wandb.mode == "online" and not self._is_heir and self._connect()
        own_sweep = (self._memory.sweep or "").rpartition("/")[2]
        self._target = wandb_client.Target(
            config=self._config,
            folder=self._folder.path,
            mode="online" if is_online else "offline",
            sweep_id=self._config.wandb.sweep or own_sweep or None,
        )

    def report(self, record: TrialRecord) -> None:
        """Logs new reports online. On disk a run is written at its end, since nobody watches it."""
        self._settle()
        if self._target.mode == "offline" or self._is_done(record.id):
            return
        if run := self._find_or_open(record):
            run.log(record)

    def end_trial(self, record: TrialRecord) -> None:
        """Logs the last reports and the summary of a trial, and ends its run."""
        self._settle()
        if not self._is_done(record.id):
            self._end(record)

    def end_search(self, results: Results | None) -> None:
        """Sends the rest, then the results as their own run, and ends the search's own sweep."""
        self._settle()
        for record in self._cut_off:
            if not self._is_done(record.id):
                self._end(record)
        if results is not None and self._heir is None:
            self._log_results(results)
        for run in self._open.values():
            run.wait()
        self._settle()
        if self._heir is not None:
            self._heir.wait()

    def close(self) -> None:
        """Ends the client's process, and marks the runs that were not sent."""
        try:
            wandb_client.end()
        finally:
            if not self._is_heir:  # the heir's parent may still be sending
                mark_unsent(self._folder)

    def _connect(self) -> bool:
        """Logs in and creates the sweep. Returns whether this worked in time, and warns if not."""
        problem = [f"no answer within {_CONNECT_SECONDS:.0f} s"]

        def connect() -> None:
            try:
                if not wandb_client.log_in():
                    problem[0] = ""  # the end of the search says how to log in and send the runs
                    return
                if not self._config.wandb.sweep and not self._memory.sweep:
                    memory = self._memory
                    memory.sweep, memory.app = wandb_client.make_sweep(self._config)
                    memory.save(self._folder)
                problem.clear()
            except Exception as error:
                traceback.print_exc()
                problem[0] = one_line(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(_CONNECT_SECONDS)
        if any(problem):
            self._say(f"{self.name}: {problem[0]}; runs are written to disk instead")
        return not problem

    def _is_done(self, run_id: str) -> bool:
        """Returns whether this tracker has nothing more to send of a run.

        A run that was written to disk is sent again when the tracker is online.
        """
        if run_id in self._open:
            return self._open[run_id].is_finishing
        mode = self._memory.complete_runs.get(run_id)
        is_complete = mode == "online" or (mode == "offline" and self._target.mode == "offline")
        return is_complete or run_id in self._parents_runs or self._heir is not None

    def _end(self, record: TrialRecord) -> None:
        run = self._find_or_open(record)
        if run is None:
            return
        run.log(record)
        run.summarize(wandb_payload.summary(self._config, record))
        if record.state in ENDED:
            self._ending[record.id] = record
            run.end(1 if record.state == "failed" else 0)
        else:
            run.interrupt()

    def _find_or_open(self, record: TrialRecord) -> wandb_client.OpenRun | None:
        if record.id in self._open:
            return self._open[record.id]
        return self._open_run(record.id, wandb_payload.run_config(self._config, record))

    def _open_run(
        self, run_id: str, settings: wandb_payload.Values | None
    ) -> wandb_client.OpenRun | None:
        """Opens a run. Returns None if the server is lost; then an heir takes over."""
        before = folders_of(self._folder, run_id)
        if self._target.mode == "offline":
            _remove(before)  # the run is written again from the record
        try:
            run = wandb_client.OpenRun(self._target, run_id, settings)
        except Exception as error:
            if self._target.mode == "offline":
                raise
            traceback.print_exc()
            self._say(f"{self.name}: {one_line(error)}; from now on runs are written to disk")
            self._heir = _start_heir(self._folder, self._open)
            return None
        if self._target.mode == "online":
            _remove(before)  # the server has the run, or gets it again
        self._open[run_id] = run
        return run

    def _settle(self) -> None:
        """Records which runs are complete, and removes the files of those that were sent."""
        finished = [run for run in self._open.values() if run.is_finished]
        for run in finished:
            del self._open[run.id]
            record = self._ending.pop(run.id, None)
            if run.was_cut_off:
                if record is not None:
                    self._cut_off.append(record)
                continue
            if run.has_ended:
                self._memory.complete_runs[run.id] = run.mode
            if run.mode == "online":
                _remove([run.folder])
        if finished:
            self._memory.save(self._folder)

    def _log_results(self, results: Results) -> None:
        prefix = RunInfo.read(self._folder).prefix
        run = self._open_run(f"{prefix}-search", None)
        if run is None:
            return
        run.log_results(self._config, results, self._folder.report_html)
        run.end(0)
        if self._target.mode == "online" and self._memory.sweep:
            try:
                wandb_client.stop_sweep(self._memory.sweep)
            except Exception:  # the sweep was already ended, by this search or someone else
                traceback.print_exc()


def _start_heir(folder: RunFolder, parents_runs: Collection[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tune.tracking.wandb_heir", str(folder.path), *parents_runs]
    # It shares our stdin, so it ends when we end.
    return subprocess.Popen(command, env=wandb_client.environment())


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
