"""Defines RunFolder: the location of a run folder, and one property for each path in it.

It knows names only. It reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from dpo_train.storage import mirror


@final
@dataclass(frozen=True)
class RunFolder:
    """The folder of one run on this machine. Its text is what a user types for it."""

    path: Path
    """The folder on this machine. For a run at a URL it is the folder that mirrors the URL."""
    url: str | None = None
    """The URL of the run; None for a run on a disk."""

    @classmethod
    def at(cls, location: str | Path) -> RunFolder:
        """Returns the run folder at a path or a URL, whether it exists or not."""
        path = mirror.local(location)
        return cls(path, mirror.url(path))

    def __str__(self) -> str:
        return mirror.shown(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.path.name

    @property
    def location(self) -> str:
        """The URL or the absolute path, which is the same on all nodes of a cluster."""
        return self.url or str(self.path.absolute())

    @property
    def argument(self) -> str:
        """The argument that names this run in a command, before it is quoted for the shell."""
        return self.url or str(self.path)

    @property
    def exists(self) -> bool:
        """Whether the run exists: `run.json` is written last when a run is created."""
        return self.run_json.is_file()

    # Documents of the whole run.

    @property
    def search_yaml(self) -> Path:
        """The resolved configuration."""
        return self.path / "search.yaml"

    @property
    def run_json(self) -> Path:
        """The file of `RunInfo`."""
        return self.path / "run.json"

    @property
    def results_json(self) -> Path:
        """The results."""
        return self.path / "results.json"

    @property
    def report_html(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def serve_yaml(self) -> Path:
        """The configuration with which Ray Serve serves the winner."""
        return self.path / "serve.yaml"

    @property
    def live_json(self) -> Path:
        """The progress of running trials between two reports."""
        return self.path / "live.json"

    @property
    def placements(self) -> Path:
        """The record of which trial held which GPU, and when."""
        return self.path / "places.jsonl"

    @property
    def evaluations(self) -> Path:
        """The values that the user's own evaluation gave the finalists."""
        return self.path / "evaluations.json"

    # What belongs to one trial.

    @property
    def trials(self) -> Path:
        """The folder of all trial records."""
        return self.path / "trials"

    def record(self, trial: str) -> Path:
        """The record of a trial."""
        return self.trials / f"{trial}.json"

    def held_out(self, trial: str) -> Path:
        """The values of each held-out pair at each report."""
        return self.trials / f"{trial}.npz"

    def log(self, trial: str) -> Path:
        """The traceback of a failed trial."""
        return self.trials / f"{trial}.log"

    @property
    def states(self) -> Path:
        """The saved states of all open trials."""
        return self.path / "state"

    def states_of(self, trial: str) -> Path:
        """The saved states of one trial."""
        return self.states / trial

    def state(self, trial: str, pairs_seen: int) -> Path:
        """The state from which a trial continues after so many pairs."""
        return self.states_of(trial) / str(pairs_seen)

    # Exported weights.

    @property
    def best(self) -> Path:
        """The exported weights of all trials that keep theirs."""
        return self.path / "best"

    def exports_of(self, trial: str) -> Path:
        """The exported weights of one trial."""
        return self.best / trial

    def export(self, trial: str, pairs_seen: int) -> Path:
        """The weights of a trial after so many pairs."""
        return self.exports_of(trial) / str(pairs_seen)

    @property
    def winner(self) -> Path:
        """The winner's weights."""
        return self.path / "winner"

    @property
    def hub(self) -> Path:
        """The repository that is pushed to the Hub."""
        return self.path / "hub"

    def relative(self, path: Path) -> str:
        """Returns a path relative to this folder, which `absolute` resolves on another node."""
        return str(path.relative_to(self.path))

    def absolute(self, relative: str) -> Path:
        """Returns the path on this machine of a path from `relative`."""
        return self.path / relative

    # Files by which processes communicate.

    @property
    def requests(self) -> Path:
        """The users' requests to a running search."""
        return self.path / "requests"

    @property
    def driver_lock(self) -> Path:
        """The lock of the driver, which ensures that a run has one driver on this machine."""
        return self.path / ".lock"

    @property
    def heartbeat(self) -> Path:
        """The file at the run's URL that says who drives the run, and that it is alive."""
        return self.path / ".driver.json"

    @property
    def refresh_lock(self) -> Path:
        """The lock of the process that copies files from the URL to this machine."""
        return self.path / ".bringing"


RunLike = str | Path | RunFolder
"""A run as users name it: by its name under `runs/`, a path, a URL, or `results.folder`."""
