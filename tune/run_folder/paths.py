"""The type of a run folder: where it stands, and one property for each path in it.

It knows names only. It reads nothing and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from dpo_train.storage import mirror


@final
@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, as this machine works on it. As text it is what a person types."""

    path: Path
    """On this machine. For a run at a URL it is the folder that mirrors the URL."""
    url: str | None = None
    """The URL at which the run stands; None for a run on a disk."""

    @classmethod
    def at(cls, place: str | Path) -> RunFolder:
        """The run folder at a path or a URL, whether it exists or not."""
        path = mirror.local(place)
        return cls(path, mirror.url(path))

    def __str__(self) -> str:
        return mirror.shown(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def place(self) -> str:
        """What all nodes of a cluster know the folder by: its URL, or its absolute path."""
        return self.url or str(self.path.absolute())

    @property
    def argument(self) -> str:
        """What a command is given to mean the folder, before it is quoted for the shell."""
        return self.url or str(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is a run: `run.json` is written last when a run begins."""
        return self.run_json.is_file()

    # Documents of the whole run.

    @property
    def search_yaml(self) -> Path:
        """The configuration, as resolved."""
        return self.path / "search.yaml"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def results_json(self) -> Path:
        return self.path / "results.json"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def serve_yaml(self) -> Path:
        """What Ray Serve is given to serve the winner."""
        return self.path / "serve.yaml"

    @property
    def live_json(self) -> Path:
        """What the trials of a running search do between two reports."""
        return self.path / "live.json"

    @property
    def placements(self) -> Path:
        """Which trial held which GPU, and when."""
        return self.path / "places.jsonl"

    @property
    def evaluations(self) -> Path:
        """What the user's own evaluation said of the finalists."""
        return self.path / "evaluations.json"

    # What belongs to one trial.

    @property
    def trials(self) -> Path:
        """The folder of all trial records."""
        return self.path / "trials"

    def record(self, trial: str) -> Path:
        return self.trials / f"{trial}.json"

    def held_out(self, trial: str) -> Path:
        """The values of each held-out pair at each report."""
        return self.trials / f"{trial}.npz"

    def log(self, trial: str) -> Path:
        """The traceback of a trial that failed."""
        return self.trials / f"{trial}.log"

    @property
    def states(self) -> Path:
        """The saved states of all open trials."""
        return self.path / "state"

    def states_of(self, trial: str) -> Path:
        return self.states / trial

    def state(self, trial: str, pairs_seen: int) -> Path:
        """What a trial needs to go on from so many pairs."""
        return self.states_of(trial) / str(pairs_seen)

    # Exported weights.

    @property
    def best(self) -> Path:
        """The exported weights of all trials whose weights are kept."""
        return self.path / "best"

    def exports_of(self, trial: str) -> Path:
        return self.best / trial

    def export(self, trial: str, pairs_seen: int) -> Path:
        """A trial's weights as they were at so many pairs."""
        return self.exports_of(trial) / str(pairs_seen)

    @property
    def winner(self) -> Path:
        return self.path / "winner"

    @property
    def hub(self) -> Path:
        """The repository as it is pushed to the Hub."""
        return self.path / "hub"

    def relative(self, path: Path) -> str:
        """A path in this folder as another node can use it, by `absolute`."""
        return str(path.relative_to(self.path))

    def absolute(self, relative: str) -> Path:
        return self.path / relative

    # What processes leave for each other.

    @property
    def requests(self) -> Path:
        """What a person asks of a running search."""
        return self.path / "requests"

    @property
    def driver_lock(self) -> Path:
        """The driver locks it, so that a run on this machine has one driver only."""
        return self.path / ".lock"

    @property
    def heartbeat(self) -> Path:
        """At the run's URL: who drives the run, and that it is alive."""
        return self.path / ".driver.json"

    @property
    def refresh_lock(self) -> Path:
        """Locked by the process that copies files from the URL to this machine."""
        return self.path / ".bringing"


RunLike = str | Path | RunFolder
"""A run as people name it: by its name under `runs/`, a path, a URL, or `results.folder`."""
