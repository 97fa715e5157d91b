"""Reads users' requests to a running search from its run folder, for the driver.

`tune/commands/stop_clone.py` writes `requests/<time>/request.json` last and atomically.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, field_validator

from dpo_train.errors import StoreError
from dpo_train.storage import mirror
from tune.config.space import Point
from tune.run_folder.document import Document
from tune.run_folder.paths import RunFolder

FILE = "request.json"
_POLL_SECONDS = 5.0
"""Pause between two polls of a URL, since each of them costs an HTTP request."""


class Request(Document):
    """A user's request to stop or to clone a trial."""

    kind: Literal["stop", "clone"]
    trial: str
    """The trial to stop or to clone."""
    point: Point = {}
    """The point of the clone."""
    warm: bool = False
    """Whether an earlier version requested a clone that starts from exported weights."""

    @field_validator("warm")
    @classmethod
    def _no_warm_clones(cls, warm: bool) -> bool:
        if warm:
            raise ValueError("warm clones no longer exist; request the clone without --warm")
        return warm


class Inbox:
    """The requests of one run folder."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._looked = -_POLL_SECONDS
        self._seen: list[tuple[Path, Request]] = []

    def stops(self, trial: str) -> bool:
        """Returns whether a user requested to stop this trial."""
        requests = (request for _, request in self._all())
        return any(request.kind == "stop" and request.trial == trial for request in requests)

    def next_clone(self) -> tuple[Path, Request] | None:
        """Returns the oldest request for a clone with its folder, which `taken` removes."""
        return next((item for item in self._all() if item[1].kind == "clone"), None)

    def taken(self, request: Path) -> None:
        """Removes the folder of a completed request."""
        mirror.remove(request / FILE)
        self._looked = -_POLL_SECONDS
        with contextlib.suppress(OSError):
            request.rmdir()

    def drop(self, trial: str) -> None:
        """Removes requests to stop a trial that has ended."""
        for path, request in self._all():
            if request.kind == "stop" and request.trial == trial:
                mirror.remove(path)
                self._looked = -_POLL_SECONDS

    def _all(self) -> list[tuple[Path, Request]]:
        is_recent = time.monotonic() - self._looked < _POLL_SECONDS
        if self._run.url is not None and is_recent:
            return self._seen
        with contextlib.suppress(StoreError):  # the next poll will find the requests
            self._seen = self._read_all()
        self._looked = time.monotonic()
        return self._seen

    def _read_all(self) -> list[tuple[Path, Request]]:
        found = []
        for path in mirror.find(self._run.requests, "[0-9]*/" + FILE):
            try:
                found.append((path.parent, Request.model_validate_json(mirror.read_text(path))))
            except OSError:  # it was just removed
                continue
            except ValidationError as error:  # a later version or a user wrote it
                refused = path.with_suffix(".refused")
                mirror.fetch(path).replace(refused)
                mirror.put(refused)
                mirror.remove(path)
                mirror.remove(path.parent / "weights")  # an earlier version put them there
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                print(f"warning: the request {mirror.shown(path)} is ignored: {reason}")
        return found
