"""Decodes the tokens of an answer to text while they are generated.

It returns only whole characters, and no text that may be the beginning of a stop text.
"""

from __future__ import annotations

from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes one answer, piece by piece. A returned piece is final."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._start = self._decoded = 0
        """Some tokens make a character only together, so the tokens from `_start` on are decoded
        together. The first `_decoded` characters of their text are in `_held` or were returned."""
        self._held = ""
        self.is_stopped = False
        """Whether a stop text has come. It and the text after it are not returned."""

    def add(self, ids: list[int], is_last: bool = False) -> str:
        """Adds tokens and returns the text that has become final."""
        # Decode, unless the last character is incomplete.
        self._ids += ids
        text = self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=True)
        if not text.endswith(_BROKEN) or is_last:
            self._held += text[self._decoded :]
            self._decoded = len(text)
            if len(self._ids) - self._start > 16:
                # Keep the last few tokens, since the next ones may join them.
                self._start = len(self._ids) - 4
                rest = self._ids[self._start :]
                self._decoded = len(self._tokenizer.decode(rest, skip_special_tokens=True))
        # Return the text up to a stop text, or what can't be the beginning of one.
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            final, self._held = self._held[: min(found)], ""
            return final
        keep = 0 if is_last else self._possible_stop_length()
        final = self._held[: len(self._held) - keep]
        self._held = self._held[len(final) :]
        return final

    def _possible_stop_length(self) -> int:
        """Returns how many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
