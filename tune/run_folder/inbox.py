"""What was asked of a running search, as its driver finds it in the run folder.

`requests/<time>/request.json` is written last and whole, by `tune/commands/stop_clone.py`.
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
"""Between two looks at a URL, where each costs a request."""


class Request(Document):
    kind: Literal["stop", "clone"]
    trial: str
    """Whom to stop, or what to clone."""
    point: Point = {}
    """Of the clone."""
    warm: bool = False
    """Whether an earlier version asked for a clone that starts from exported weights."""

    @field_validator("warm")
    @classmethod
    def _no_warm_clones(cls, warm: bool) -> bool:
        if warm:
            raise ValueError("there are no warm clones any more; ask for a clone without --warm")
        return warm


class Inbox:
    """The requests of one run folder."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._looked = -_POLL_SECONDS
        self._seen: list[tuple[Path, Request]] = []

    def stops(self, trial: str) -> bool:
        """Whether someone asked to stop this trial."""
        return any(asked.kind == "stop" and asked.trial == trial for _, asked in self._all())

    def next_clone(self) -> tuple[Path, Request] | None:
        """The oldest clone that is asked for, and its folder, which `taken` removes."""
        return next((item for item in self._all() if item[1].kind == "clone"), None)

    def taken(self, request: Path) -> None:
        """Removes a request that is done."""
        mirror.remove(request / FILE)
        self._looked = -_POLL_SECONDS
        with contextlib.suppress(OSError):
            request.rmdir()

    def drop(self, trial: str) -> None:
        """Removes the requests to stop a trial that has ended."""
        for path, request in self._all():
            if request.kind == "stop" and request.trial == trial:
                mirror.remove(path)
                self._looked = -_POLL_SECONDS

    def _all(self) -> list[tuple[Path, Request]]:
        is_recent = time.monotonic() - self._looked < _POLL_SECONDS
        if self._run.url is not None and is_recent:
            return self._seen
        with contextlib.suppress(StoreError):  # the next look finds it
            self._seen = self._look()
        self._looked = time.monotonic()
        return self._seen

    def _look(self) -> list[tuple[Path, Request]]:
        found = []
        for path in mirror.find(self._run.requests, "[0-9]*/" + FILE):
            try:
                found.append((path.parent, Request.model_validate_json(mirror.read_text(path))))
            except OSError:  # taken just now
                continue
            except ValidationError as error:  # of a later version, or a person's own hand
                refused = path.with_suffix(".refused")
                mirror.fetch(path).replace(refused)
                mirror.put(refused)
                mirror.remove(path)
                mirror.remove(path.parent / "weights")  # an earlier version laid them there
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                print(f"warning: {mirror.shown(path)} was not understood: {reason}")
        return found
