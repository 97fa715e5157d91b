"""Handles files of a run folder that can't be read: warns, renames them, or refuses the run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dpo_train.errors import InputError, one_line
from dpo_train.storage import mirror


@dataclass(frozen=True)
class DamagedFile:
    """A file, and the error that reading it raised."""

    path: Path
    error: Exception

    def __str__(self) -> str:
        return f"{mirror.shown(self.path)} is damaged ({_reason(self.error)})"

    def warn(self, sets_aside: bool) -> None:
        """Warns that the file is ignored; with `sets_aside` it is renamed, here and at its URL."""
        message = f"{self}; it is ignored"
        if sets_aside:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            self.path.replace(aside)
            mirror.put(aside)
            mirror.remove(self.path)
            message = f"{self}; it was renamed to {aside.name}"
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def refusal(self, remedy: str) -> InputError:
        """Returns the error that says what is damaged and how to repair it."""
        return InputError(f"{self}; {remedy}")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "it is not JSON"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), one_line(first["msg"], 100)])
    return one_line(error, 100)
