"""What a person sees of a driver at work: one live line on a terminal, or lines of a log, at
least one every half minute.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TextIO

_SILENCE_SECONDS = 25.0
_TICK_SECONDS = 1.0
_DRAW_SECONDS = 0.2


class SignsOfLife:
    """Prints what the driver does, from the first second on; within `with`, also when the driver
    itself is busy."""

    def __init__(self) -> None:
        self._line: Callable[[], str] = str
        self._said_at = time.monotonic()
        self._drawn_at = 0.0
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """Ray Tune pickles what it is given; a copy says nothing by itself."""
        return SignsOfLife, ()

    def __enter__(self) -> Self:
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.clear()

    def doing(self, what: str) -> None:
        """Says what begins now."""
        self._line = lambda: what
        if self._stream.isatty():
            self._drawn_at = 0.0
            self.update()
        else:
            self.say(what)

    def follow(self, line: Callable[[], str]) -> None:
        """From now on `line` says what the driver does."""
        self._line = line

    def say(self, text: str) -> None:
        """Writes a line above the live one."""
        with self._lock:
            self._said_at = time.monotonic()
            self._stream.write(("\r\033[K" if self._stream.isatty() else "") + text + "\n")
            self._stream.flush()
        self.update()

    def update(self) -> None:
        """Draws the live line again, at most five times a second."""
        if self._stream.isatty() and time.monotonic() - self._drawn_at > _DRAW_SECONDS:
            self._drawn_at = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            with self._lock:
                self._stream.write("\r\033[K" + self._line()[:width])
                self._stream.flush()

    def clear(self) -> None:
        """Removes the live line."""
        if self._stream.isatty():
            self._stream.write("\r\033[K")

    @property
    def _stream(self) -> TextIO:
        return sys.stdout  # looked up each time: a notebook replaces it

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            # The driver's own thread may be changing the records that the line is made of.
            with suppress(RuntimeError):
                if self._stream.isatty():
                    self.update()
                elif time.monotonic() - self._said_at > _SILENCE_SECONDS and (line := self._line()):
                    self.say(line)
