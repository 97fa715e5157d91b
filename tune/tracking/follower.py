"""The child process that tells W&B of a search: it follows the trial records, and asks them alone.

`python -m tune.tracking.follower RUN` goes on until its stdin closes, then finishes what is open.
It writes `wandb.json` and under `wandb/` in the run folder and nowhere else, and may be killed at
any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from dpo_train.errors import StoreError, one_line
from dpo_train.storage import mirror
from dpo_train.storage.files import write_here
from tune.config.load import load_search
from tune.run_folder.records import ENDED, Document, RunInfo, TrialRecord
from tune.run_folder.results import load_results
from tune.tracking import payload, wandb_client
from tune.tracking.child_process import environment, folders_of, kill_children, mark_unsent

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 6.0
"""For the login and the sweep, together."""
_CLOSE_SECONDS = 8.5
"""For all that is left at the end; the driver kills at child_process.CLOSE_SECONDS."""

Say = Callable[[str], None]


class Memory(Document):
    """`wandb.json`: what a later driver session must know of this one. Holds no secret."""

    sweep: str | None = None
    """Path of the sweep that this search made: entity/project/id."""
    app: str | None = None
    """Where people see it: https://wandb.ai, or a server of their own."""
    told: dict[str, str] = {}
    """By id of a run that ended: the mode in which W&B was told all of it."""

    @classmethod
    def read(cls, path: Path) -> Memory:
        return cls.model_validate_json(path.read_text()) if path.exists() else cls()

    def save(self, path: Path) -> None:
        with path.with_name("wandb").joinpath(".memory").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # an heir writes too
            there = Memory.read(path)
            self.sweep, self.app = self.sweep or there.sweep, self.app or there.app
            self.told = there.told | self.told
            write_here(path, self.model_dump_json(indent=1))
            # Files of runs that were told on disk lie on this machine alone.
            sent = {run: mode for run, mode in self.told.items() if mode == "online"}
            elsewhere = self.model_copy(update={"told": sent})
            with contextlib.suppress(StoreError):
                mirror.put(path, elsewhere.model_dump_json(indent=1))


class Follower:
    """Reads trial records and keeps a run of each, all attached to one sweep.

    An heir is the follower that takes over, on disk, when a server is lost: the client can't open
    on disk what it failed to open online. The runs of `others` stay its parent's.
    """

    def __init__(
        self, folder: Path, say: Say, is_heir: bool = False, others: Collection[str] = ()
    ) -> None:
        self._folder = folder
        self._say = say
        self._others = others
        self._config = load_search(folder / "search.yaml")
        self._memory_path = folder / "wandb.json"
        self._memory = Memory.read(self._memory_path)
        self._seen: dict[str, int] = {}
        self._open: dict[str, wandb_client.OpenRun] = {}
        self._heir: subprocess.Popen[bytes] | None = None
        self._closing = False
        wants_server = self._config.wandb.mode == "online" and not is_heir
        self._mode: wandb_client.Mode = "online" if wants_server and self._connect() else "offline"

    def look(self) -> None:
        """Tells what has changed in the records since the last look.

        First of the runs that are open: to end one is quick, and to open one may wait for a server
        that is lost, longer than there is time at the end.
        """
        entries = list(os.scandir(self._folder / "trials"))
        entries.sort(key=lambda entry: entry.name.partition(".")[0] not in self._open)
        for entry in entries:
            trial_id, dot, kind = entry.name.partition(".")
            if kind != "json" or not dot or self._is_done(trial_id):
                continue
            changed = entry.stat().st_mtime_ns
            if self._seen.get(trial_id) != changed:
                self._seen[trial_id] = changed
                self._tell(TrialRecord.model_validate_json(Path(entry).read_text()))
        self._settle()

    def close(self) -> None:
        """Tells the rest, ends every run, and the sweep if the search is over."""
        self._closing = True
        self._seen.clear()
        self.look()
        for run in self._open.values():
            if not run.is_finishing:
                run.interrupt()
        self._end_search()
        for run in self._open.values():
            run.wait()
        self._settle()
        if self._heir is not None:
            self._heir.wait()

    def _is_done(self, run_id: str) -> bool:
        """Whether nothing is left to tell of a run; online, what lies on disk is told again."""
        if run_id in self._open:
            return self._open[run_id].is_finishing
        told = self._memory.told.get(run_id)
        is_told = told == "online" or (told == "offline" and self._mode == "offline")
        return is_told or run_id in self._others or self._heir is not None

    def _connect(self) -> bool:
        """Logs in and makes the sweep; says why not if the server does not answer in time."""
        problem = [f"no answer within {_CONNECT_SECONDS:.0f} s"]

        def connect() -> None:
            try:
                wandb_client.log_in()
                if not self._config.wandb.sweep and not self._memory.sweep:
                    memory = self._memory
                    memory.sweep, memory.app = wandb_client.make_sweep(self._config)
                    memory.save(self._memory_path)
                problem.clear()
            except Exception as error:
                traceback.print_exc()
                problem[0] = one_line(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(_CONNECT_SECONDS)
        if problem:
            self._say(f"{problem[0]}; runs are written to disk instead")
        return not problem

    def _tell(self, record: TrialRecord) -> None:
        run, ended = self._open.get(record.id), record.state in ENDED
        if run is None:
            # Offline no one looks on: a run is written once, at its end.
            is_time = ended or self._closing or self._mode == "online"
            if record.state == "pending" or not is_time:
                return
            run = self._start(record.id, payload.run_config(self._config, record))
            if run is None:
                return
        run.log(record)
        if ended or self._closing:
            run.summarize(payload.summary(self._config, record))
        if ended:
            run.end(1 if record.state == "failed" else 0)

    def _start(self, run_id: str, content: dict[str, Any] | None) -> wandb_client.OpenRun | None:
        """Opens a run; None if the server is lost: then an heir does."""
        made = (self._memory.sweep or "").rpartition("/")[2]
        sweep_id = self._config.wandb.sweep or made or None
        before = folders_of(self._folder, run_id)
        if self._mode == "offline":
            _remove(before)  # written anew from the record
        try:
            run = wandb_client.OpenRun(
                self._config, self._folder, run_id, self._mode, sweep_id, content
            )
        except Exception as error:
            if self._mode == "offline":
                raise
            traceback.print_exc()
            self._say(f"{one_line(error)}; from here on runs are written to disk")
            self._heir = _start_heir(self._folder, self._open)
            return None
        if self._mode == "online":
            _remove(before)  # the server has it, or gets it again
        self._open[run_id] = run
        return run

    def _settle(self) -> None:
        """Remembers the runs that were ended, and removes the files of those that were sent."""
        finished = [run for run in self._open.values() if run.is_finished]
        for run in finished:
            del self._open[run.id]
            if run.was_cut_off:
                continue
            if run.has_ended:
                self._memory.told[run.id] = run.mode
            if run.mode == "online":
                _remove([run.folder])
        if finished:
            self._memory.save(self._memory_path)

    def _end_search(self) -> None:
        """The results as a run of their own, and the end of the sweep that this search made."""
        if self._heir is not None or not (self._folder / "results.json").exists():
            return
        results = load_results(self._folder)
        if len(results.runs) < len(list(self._folder.glob("trials/*.json"))):
            return  # they are those of an earlier driver session, and this one was interrupted
        prefix = RunInfo.model_validate_json((self._folder / "run.json").read_text()).prefix
        run = self._start(f"{prefix}-search", None)
        if run is None:
            return
        run.log_results(self._config, results, self._folder / "report.html")
        run.end(0)
        if self._mode == "online" and self._memory.sweep:
            try:
                wandb_client.stop_sweep(self._memory.sweep)
            except Exception:  # it was ended before, or by someone else
                traceback.print_exc()


def main(folder: Path, *heir: str) -> None:
    """Follows a run folder until stdin closes. What it prints is meant for a person.

    `heir` is empty, or `heir` and the ids of the runs that are the parent's.
    """
    say = _take_stdout()
    closing = threading.Event()
    threading.Thread(target=_watch_stdin, args=[closing, folder], daemon=True).start()
    with contextlib.nullcontext() if heir else _only_child(folder):
        try:
            follower = Follower(folder, say, bool(heir), heir[1:])
            while not closing.wait(_POLL_SECONDS):
                follower.look()
            follower.close()
        except Exception as error:
            traceback.print_exc()
            say(f"{one_line(error)}; nothing more is told, see {folder}/wandb/tracking.log")
        wandb_client.end()
    _leave()


def _take_stdout() -> Say:
    """Keeps stdout for what we say; all that the client prints goes where stderr goes."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the driver is gone
            print(line, file=stream, flush=True)

    return say


def _watch_stdin(closing: threading.Event, folder: Path) -> None:
    """The driver closes stdin at the search's end, and its death closes it too."""
    while os.read(0, 1024):
        pass
    closing.set()
    time.sleep(_CLOSE_SECONDS)
    mark_unsent(folder)
    _leave()


@contextlib.contextmanager
def _only_child(folder: Path) -> Iterator[None]:
    """Waits for the child of a driver that was killed: it has seconds to end what it opened."""
    with (folder / "wandb" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        mark_unsent(folder)


def _start_heir(folder: Path, others: Collection[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tune.tracking.follower", str(folder), "heir", *others]
    return subprocess.Popen(command, env=environment())  # stdin is the same: it ends with us


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _leave() -> None:
    """Ends this process and those of the client and the heir, whatever they wait for."""
    kill_children(os.getpid())
    os._exit(0)


if __name__ == "__main__":
    os.nice(10)  # the trials come first
    main(Path(sys.argv[1]), *sys.argv[2:])
