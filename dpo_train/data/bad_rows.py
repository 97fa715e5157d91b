"""Rows that can't be read: they are listed all at once, or counted and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dpo_train.errors import BadRow, InputError

_SHOWN = 10


class BadRows:
    """Collects the bad rows of a dataset."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """The number of bad rows by reason."""
        self.first: list[str] = []
        """The first ten bad rows, each with its location and what is wrong."""

    def add(self, location: str, bad: BadRow) -> None:
        """Count a bad row, and keep it if it is one of the first ten."""
        self.counts[bad.reason] += 1
        if len(self.first) < _SHOWN:
            self.first.append(f"{location}: {bad.detail}")

    def refuse(self, rows: int) -> None:
        """Raise InputError with the list of bad rows, if any; `rows` is the number of all rows."""
        if bad := self.counts.total():
            raise InputError(refusal(self.first, bad, rows))


def listed(counts: Mapping[str, int]) -> str:
    """Return how many rows were left out for each reason, in words."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.items())


def refuse_nothing_left(pairs: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Raise InputError for a split without pairs.

    `pairs` is the number of pairs of each split after tokenising, and `dropped` the number of rows
    left out by reason.
    """
    for name, count in pairs.items():
        if not count:
            raise InputError(
                f"data: no pair is left for {name} after tokenising; left out: {listed(dropped)}; "
                "raise data.max_length_tokens or give other rows"
            )


def refusal(first: list[str], bad: int, rows: int) -> str:
    """Return the message that lists the first bad rows and counts the others."""
    way_out = "type `--set data.on_bad_row=skip` to leave {} out, or correct {}"
    if bad == 1:
        return f"data: {first[0]}; {way_out.format('this row', 'it')}"
    if bad == rows:
        return f"data: none of the {rows:,} rows can be read; the first, {first[0]}"
    lines = [f"data: {bad:,} of {rows:,} rows can't be read:", *(f"  {line}" for line in first)]
    if bad > len(first):
        lines.append(f"  and {bad - len(first):,} more")
    return "\n".join([*lines, way_out.format("them", "them")])
