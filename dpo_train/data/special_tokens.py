"""Special tokens of a model that stand in a text, where they would end or begin a turn.

The tokens are given: this knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dpo_train.data.bad_rows import BadRow
from dpo_train.data.row import Row


class SpecialTokens:
    """Refuses rows in whose messages one of these tokens is written."""

    def __init__(self, tokens: Collection[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None
        self._starts = sorted({token[:2] for token in tokens})

    def refuse(self, row: Row) -> None:
        """Raises BadRow."""
        if self._pattern is None:
            return
        for part in ("prompt", "chosen", "rejected"):
            for text in _texts(getattr(row, part)):
                # Nearly no text has even the beginning of one, which is found much faster.
                if any(start in text for start in self._starts) and (
                    found := self._pattern.search(text)
                ):
                    raise BadRow(
                        "a special token in the text",
                        f"{part} holds {found[0]!r}, a special token of the model, which would "
                        "end or begin a turn",
                    )


def _texts(messages: Sequence[Any]) -> Iterator[str]:
    """Every text in messages, at any depth."""
    for each in messages:
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            yield from _texts(list(each.values()))
        elif isinstance(each, list):
            yield from _texts(each)
