"""Refuses texts that contain a special token of the model, which would end or begin a turn.

The tokens are given by the caller. This module knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from dpo_train.data.row import Row, texts_in
from dpo_train.errors import BadRow


class SpecialTokens:
    """Refuses rows whose messages contain one of the given tokens."""

    def __init__(self, tokens: Collection[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None
        self._starts = sorted({token[:2] for token in tokens})

    def refuse(self, row: Row) -> None:
        """Raise BadRow if the row contains one of the tokens."""
        if self._pattern is None:
            return
        for part, value in row.as_json().items():
            for text in texts_in(value):
                # Nearly no text has even the first two letters of a token. Looking for these
                # first is much faster than the pattern.
                if any(start in text for start in self._starts) and (
                    found := self._pattern.search(text)
                ):
                    raise BadRow(
                        "a special token in the text",
                        f"{part} holds {found[0]!r}, a special token of the model, which would "
                        "end or begin a turn",
                    )
