"""Makes control characters visible in what is printed, so that a terminal does not obey them.

A prompt, an answer, an error or a file name may hold characters that set the terminal's title,
write to the clipboard or reverse the order of letters.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029]
_CONTROLS += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""C0, DEL and C1, and the marks of Unicode that change a text's direction or break its lines."""
_SHOWN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in _CONTROLS
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """Return the text with all control characters but line breaks and tabs as `\\x1b`."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)


_BAR = re.compile(r"(\n*(?:\x1b\[A)*\r?)(.*?)(\r?)", re.DOTALL)
"""How tqdm draws a progress bar: it goes to its line, to the line's beginning, and may go back."""


class PlainOutput:
    """A text stream on which control characters are shown as text."""

    def __init__(self, stream: TextIO, has_bars: bool = False) -> None:
        """`has_bars`: whether libraries draw progress bars on it, which move the cursor."""
        self.terminal = stream
        """The wrapped stream, for code that draws on the terminal with texts it made printable."""
        self._has_bars = has_bars

    def write(self, text: str) -> int:
        """Write the printable form of a text."""
        bar = _BAR.fullmatch(text) if self._has_bars else None
        if bar is None:
            return self.terminal.write(printable(text))
        before, shown, after = bar.groups()
        return self.terminal.write(before + printable(shown) + after)

    def writelines(self, lines: Any) -> None:
        """Write the printable form of each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def show_control_characters() -> None:
    """Wrap stdout and stderr in PlainOutput. A command calls it before it prints anything."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, PlainOutput):
            has_bars = name == "stderr" and stream.isatty()
            setattr(sys, name, PlainOutput(stream, has_bars))


def terminal() -> TextIO:
    """Return the unwrapped standard output, for code that draws on the terminal."""
    stream = sys.stdout
    return stream.terminal if isinstance(stream, PlainOutput) else stream
