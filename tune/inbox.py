"""What was asked of a running search, as its driver finds it in the run folder.

`requests/<time>/request.json` is written last and whole, by `tune/requests.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, Literal

from tune.records import Document, TrialRecord

FILE, WEIGHTS = "request.json", "weights"


class Request(Document):
    kind: Literal["stop", "clone"]
    trial: str
    """Whom to stop, or what to clone."""
    point: dict[str, Any] = {}
    """Of the clone."""
    warm: bool = False
    """Whether the clone starts from the exported weights, which lie beside the request."""


class Inbox:
    """The requests of one run folder."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.folder = run / "requests"

    def stops(self, trial: str) -> bool:
        """Whether someone asked to stop this trial."""
        return any(asked.kind == "stop" and asked.trial == trial for _, asked in self._all())

    def next_clone(self) -> tuple[Path, Request] | None:
        """The oldest clone that is asked for, and its folder, which `taken` removes."""
        return next((item for item in self._all() if item[1].kind == "clone"), None)

    def taken(self, request: Path) -> None:
        """Marks a request as done; weights beside it stay until `drop`."""
        (request / FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            request.rmdir()

    def drop(self, record: TrialRecord) -> None:
        """Removes what was asked of, or laid beside, a trial that has ended."""
        for path, request in self._all():
            if request.kind == "stop" and request.trial == record.id:
                shutil.rmtree(path, ignore_errors=True)
        if record.request:
            shutil.rmtree(self.folder / record.request, ignore_errors=True)

    def weights(self, record: TrialRecord) -> str | None:
        """Where the weights lie that a warm clone starts from, in the run folder."""
        if not (record.warm and record.request):
            return None
        return str((self.folder / record.request / WEIGHTS).relative_to(self._run))

    def _all(self) -> list[tuple[Path, Request]]:
        found = []
        for path in sorted(self.folder.glob("[0-9]*/" + FILE)):
            try:
                found.append((path.parent, Request.model_validate_json(path.read_text())))
            except OSError:  # taken just now
                continue
            except ValueError as error:  # of a later version, or a person's own hand
                path.replace(path.with_suffix(".refused"))
                print(f"warning: {path} was not understood: {str(error).splitlines()[0]}")
        return found
