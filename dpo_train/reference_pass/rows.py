"""The rows.jsonl of a planned folder: the rows of all splits in order, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

from dpo_train.data import Row
from dpo_train.errors import InputError
from dpo_train.reference_pass.plan import PLAN
from dpo_train.storage import mirror
from dpo_train.storage.files import checksum

ROWS, LOCATIONS = "rows.jsonl", "places.txt"


def read_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield the split and the row of every line. A row has its location in the dataset if known."""
    locations = folder / LOCATIONS
    known = locations.read_text(encoding="utf-8").split("\n") if locations.is_file() else []
    # Texts from the web hold U+2028 and similar characters, which would end a line of text. So the
    # lines are read as bytes.
    with (folder / ROWS).open("rb") as lines:
        for number, (line, location) in enumerate(
            zip(lines, chain(known, repeat("")), strict=False), 1
        ):
            content = json.loads(line)
            split = content.pop("split")
            yield split, Row.from_json(content, location or f"{ROWS} line {number}")


def refuse_damaged(folder: Path, wanted: str) -> None:
    """Raise InputError unless the file has the checksum of the plan."""
    if checksum(folder / ROWS) != wanted:
        mirror.remove(folder / PLAN)
        mirror.forget(folder / ROWS)
        raise InputError(
            f"{folder}/{ROWS} is damaged; type the same command again, which writes it again from "
            "the dataset"
        )
