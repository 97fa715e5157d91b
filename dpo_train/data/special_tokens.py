"""Special tokens of a model that stand in a text, where they would end or begin a turn.

The tokens are given: this knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from dpo_train.data.row import Row, texts_in
from dpo_train.errors import BadRow


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
        for part, value in row.as_json().items():
            for text in texts_in(value):
                # Nearly no text has even the beginning of one, which is found much faster.
                if any(start in text for start in self._starts) and (
                    found := self._pattern.search(text)
                ):
                    raise BadRow(
                        "a special token in the text",
                        f"{part} holds {found[0]!r}, a special token of the model, which would "
                        "end or begin a turn",
                    )
