"""What is printed is not obeyed: a prompt, an answer, an error or a file name may hold characters
by which a terminal sets its title, writes to the clipboard or turns the order of letters round.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029]
_CONTROLS += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""C0, DEL and C1, and of Unicode the marks that change a text's direction or break its lines."""
_SHOWN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in _CONTROLS
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """The text with every control character but line breaks and tabs written out, like `\\x1b`."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)


_BAR = re.compile(r"(\n*(?:\x1b\[A)*\r?)(.*?)(\r?)", re.DOTALL)
"""How tqdm draws a progress bar: it goes to its line, to the line's beginning, and may go back."""


class PlainOutput:
    """A text stream on which control characters are shown as text."""

    def __init__(self, stream: TextIO, has_bars: bool = False) -> None:
        """`has_bars`: whether libraries draw progress bars on it, which move the cursor."""
        self.terminal = stream
        """For whoever draws on the terminal, and has made its own texts printable."""
        self._has_bars = has_bars

    def write(self, text: str) -> int:
        bar = _BAR.fullmatch(text) if self._has_bars else None
        if bar is None:
            return self.terminal.write(printable(text))
        before, shown, after = bar.groups()
        return self.terminal.write(before + printable(shown) + after)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def show_control_characters() -> None:
    """For a command line, before it prints anything."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, PlainOutput):
            has_bars = name == "stderr" and stream.isatty()
            setattr(sys, name, PlainOutput(stream, has_bars))


def terminal() -> TextIO:
    """Standard output for whoever draws on it."""
    stream = sys.stdout
    return stream.terminal if isinstance(stream, PlainOutput) else stream
