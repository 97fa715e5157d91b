"""Loads a dataset by its configuration: the rows of each split, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dpo_train.config import DataConfig
from dpo_train.data.bad_rows import BadRows, listed
from dpo_train.data.columns import Columns, Parts
from dpo_train.data.filters import cut, filtered, without_overlap
from dpo_train.data.forms.decide import Form, decide, read_row
from dpo_train.data.row import SPLITS, Row
from dpo_train.data.sources import read_records
from dpo_train.errors import BadRow, InputError


@dataclass(frozen=True)
class Pairs:
    """The rows of each split of a dataset."""

    splits: dict[str, list[Row]]
    dropped: dict[str, int]
    """How many rows were left out, by reason."""
    read_as: str = ""
    """The form that was found, and the number of rows that were read."""
    first_bad: tuple[str, ...] = ()
    """The first ten rows that can't be read, each with its location and what is wrong."""

    def summary(self) -> str:
        """Return the number of pairs of each split, and of rows that were left out, in words."""
        sizes = ", ".join(f"{len(rows)} {name}" for name, rows in self.splits.items())
        left_out = listed(self.dropped)
        return f"{sizes} pairs" + (f"; left out: {left_out}" if left_out else "")


def load_pairs(config: DataConfig) -> Pairs:
    """Read, filter and split the dataset.

    Raises InputError, which names the file and row, or the filter.
    """
    dropped: Counter[str] = Counter()
    names = [config.split]
    if config.eval_split and config.test_split:
        names = [config.split, config.eval_split, config.test_split]
    reading = _Reading(config)
    for name in names:
        reading.read_split(name)
    if not reading.count:
        raise InputError(
            f"data.id: {config.id} has no rows; give a file with one pair per line, like "
            '{"prompt": "…", "chosen": "…", "rejected": "…"}'
        )
    form, rows = reading.rows(dropped)
    kept = [filtered(each, config, dropped) for each in rows]
    if len(kept) == 1:
        splits = cut(kept[0], config)
    else:
        splits = without_overlap(dict(zip(SPLITS, kept, strict=True)), dropped)
    for name, left in splits.items():
        if not left:
            raise InputError(
                f"data: no pair is left for {name}; {reading.count} rows were read, left out: "
                f"{listed(dropped) or 'none'}; widen data.chars, raise data.limit or give more "
                "rows"
            )
    read_as = f"{form}, {reading.count:,} rows{reading.unread()}"
    return Pairs(splits, dict(dropped), read_as, tuple(reading.first_bad))


class _Reading:
    """Holds the records of all splits until the form of the whole dataset is known."""

    def __init__(self, config: DataConfig) -> None:
        self.count = 0
        self._config = config
        self._columns = Columns(config.columns)
        self._column_names: set[str] = set()
        self._filled_media: set[str] = set()
        self._found_parts: set[str] = set()
        self._bad = BadRows()
        self._splits: list[list[tuple[str, Parts]]] = []

    def read_split(self, name: str) -> None:
        """Read the records of a split."""
        kept: list[tuple[str, Parts]] = []
        for location, content in read_records(self._config, name, self._columns.wanted):
            self.count += 1
            if isinstance(content, BadRow):
                self._bad.add(location, content)
                continue
            self._column_names.update(content)
            self._filled_media.update(
                name for name in self._columns.media if content.get(name) not in (None, [], "")
            )
            parts = self._columns.parts(content)
            self._found_parts.update(part for part, value in parts.items() if value is not None)
            kept.append((location, parts))
        self._splits.append(kept)

    def unread(self) -> str:
        """Return a clause that names the columns that are not part of a pair, if any."""
        names = self._columns.unread(self._column_names)
        return f"; not read: {', '.join(names)}" if names else ""

    @property
    def first_bad(self) -> list[str]:
        """The first ten rows that can't be read."""
        return self._bad.first

    def rows(self, dropped: Counter[str]) -> tuple[Form, list[list[Row]]]:
        """Return the form, and the rows of each split. Raises InputError for bad rows."""
        if self._column_names:
            self._columns.check(self._column_names, self._filled_media, self._found_parts)
        form = decide([parts for records in self._splits for _, parts in records])
        rows = [list(self._read(records, form)) for records in self._splits]
        if self._config.on_bad_row == "refuse":
            self._bad.refuse(self.count)
        dropped.update(self._bad.counts)
        return form, rows

    def _read(self, records: list[tuple[str, Parts]], form: Form) -> Iterator[Row]:
        records.reverse()
        while records:  # each record's memory is freed as soon as its row is read
            location, parts = records.pop()
            try:
                yield read_row(parts, form, location)
            except BadRow as bad:
                self._bad.add(location, bad)
