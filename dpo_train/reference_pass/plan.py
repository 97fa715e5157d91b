"""The plan.json of a planned folder: how its rows are tokenised and scored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_train.config import ModelConfig
from dpo_train.errors import InputError
from dpo_train.storage import mirror

FORMAT = 2
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What a planned folder holds, and how it is prepared."""

    base: ModelConfig
    device: str
    max_length_tokens: int
    on_bad_row: Literal["refuse", "skip"]
    rows: int
    rows_sha256: str
    """Checksum of rows.jsonl."""


def read_plan(folder: Path) -> Plan:
    """Return the plan of a folder, here or at its URL.

    Raises InputError for a plan of another version, and FileNotFoundError if there is none.
    """
    content: dict[str, Any] = json.loads(mirror.fetch_once(folder / PLAN).read_text())
    if content["format"] != FORMAT:
        raise InputError(
            f"{mirror.shown(folder)}: the data was prepared by another version of dpo-tune; go on "
            "with that version, or start another search with `--name NEW`"
        )
    return Plan(
        base=ModelConfig(**content["base"]),
        device=content["device"],
        max_length_tokens=content["max_length_tokens"],
        on_bad_row=content["on_bad_row"],
        rows=content["count"],
        rows_sha256=content["rows"],
    )
