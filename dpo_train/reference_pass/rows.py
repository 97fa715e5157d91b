"""rows.jsonl of a planned folder: the rows of all splits, one a line, read in their order."""

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
    """The split and the row of every line, the row with its place in the dataset if it is known."""
    locations = folder / LOCATIONS
    known = locations.read_text(encoding="utf-8").split("\n") if locations.is_file() else []
    # Lines are read as bytes: texts from the web hold U+2028 and its like, which end a text's line.
    with (folder / ROWS).open("rb") as lines:
        for number, (line, location) in enumerate(
            zip(lines, chain(known, repeat("")), strict=False), 1
        ):
            content = json.loads(line)
            split = content.pop("split")
            yield split, Row.from_json(content, location or f"{ROWS} line {number}")


def refuse_damaged(folder: Path, wanted: str) -> None:
    """Raises InputError unless the file has the checksum that was planned."""
    if checksum(folder / ROWS) != wanted:
        mirror.remove(folder / PLAN)
        mirror.forget(folder / ROWS)
        raise InputError(
            f"{folder}/{ROWS} is damaged; type the same command again, which writes it again from "
            "the dataset"
        )
