"""Runs a program in a terminal of a given size and shows its output on a simulated screen."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[=>]|(.)", re.DOTALL)


class Screen:
    """The part of a terminal that rich's live display uses. Lines that scrolled away are kept."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self.lines = [""]
        self._row = self._column = 0
        self.wrapped: list[str] = []
        """The beginnings of lines that were too long."""
        self.erased: list[str] = []
        """Lines that were erased and drawn again."""

    def feed(self, text: str) -> None:
        """Process output of a program."""
        for amount, command, character in _TOKEN.findall(text):
            if command == "A":
                top = max(0, len(self.lines) - self._rows)
                self._row = max(top, self._row - int(amount or 1))
            elif command == "K":
                self.erased.append(self.lines[self._row])
                self.lines[self._row] = ""
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._down()
            elif character:
                self._put(character)

    def _put(self, character: str) -> None:
        if self._column + cell_len(character) > self._columns:
            self.wrapped.append(self.lines[self._row])
            self._down()
            self._column = 0
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += cell_len(character)

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")


def run_in(columns: int, rows: int, command: list[str], folder: Path) -> tuple[int, Screen]:
    """Run a command to its end, and return its exit code and the screen."""
    screen = Screen(columns, rows)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    unset = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    process = subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    pending = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose program has ended
        while read := os.read(ours, 65536):
            pending += read
            # A read may end inside a character or a command, so only whole lines are drawn.
            whole = pending.rpartition(b"\n")[0] or b""
            screen.feed(whole.decode())
            pending = pending[len(whole) :]
    screen.feed(pending.decode())
    os.close(ours)
    return process.wait(), screen
