"""Shows what a driver is doing: live lines on a terminal, a live picture in a notebook, or lines
with the time in a log, at least one a minute.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dpo_train.plain_output import printable, show_control_characters, terminal
from tune.search.view import View

_SILENCE_SECONDS = 55.0
_TICK_SECONDS = 1.0
_DRAWN_PER_SECOND = 2.0
_NOTEBOOK_WIDTH, _NOTEBOOK_HEIGHT = 110, 40

_Look = Callable[[], View]


class SignsOfLife:
    """Shows what the driver is doing, from the first second on. Inside `with` it also does so while
    the driver itself is busy."""

    def __init__(self) -> None:
        self._view: _Look = View
        self._last = self._last_of_trials = View()
        self._surface: _Surface = _Log()

    def __reduce__(self) -> Any:
        """Pickle a copy that shows nothing by itself, since Ray Tune pickles its arguments."""
        return SignsOfLife, ()

    def __enter__(self) -> Self:
        console = Console(file=terminal(), soft_wrap=True, highlight=False)
        if console.is_jupyter:
            self._surface = _Notebook()
        elif sys.stdout.isatty() and console.is_interactive:
            self._surface = _Terminal(console)
        self._surface.begin(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._surface.end(self._last_of_trials)

    def doing(self, what: str) -> None:
        """Show what begins now."""
        self._look()
        began = time.monotonic()

        def view() -> View:
            seconds = time.monotonic() - began
            return View(doing=f"{what} ({seconds:.0f} s)" if seconds >= 2 else what)

        self._view = view
        self._surface.doing(what)

    def follow(self, view: _Look) -> None:
        """Show what `view` returns from now on."""
        self._view = view

    def say(self, text: str) -> None:
        """Print a line above the live lines."""
        self._surface.say(text)

    def _look(self) -> View:
        # The driver's thread may change the records while the view is made, which raises
        # RuntimeError. So we keep the last view then.
        with suppress(RuntimeError):
            self._last = self._view()
            self._last_of_trials = self._last if self._last.total else self._last_of_trials
        return self._last


class _Surface(Protocol):
    """A place where progress is shown."""

    def begin(self, look: _Look) -> None:
        """Start to show what `look` returns."""

    def doing(self, what: str) -> None:
        """Show that something else begins."""

    def say(self, text: str) -> None:
        """Print a line."""

    def end(self, last: View) -> None:
        """Stop. `last` is the last view of the trials."""


class _Terminal:
    """Live lines at the bottom of the terminal. Everything that is printed goes above them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, look: _Look) -> None:
        console = self._console
        self._live = Live(
            console=console,
            get_renderable=lambda: look().picture(console.width, console.height),
            refresh_per_second=_DRAWN_PER_SECOND,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # otherwise it goes to a file
        )
        self._live.start()
        show_control_characters()  # this covers what others print meanwhile

    def doing(self, what: str) -> None:
        self._live.refresh()

    def say(self, text: str) -> None:
        self._console.out(printable(text), highlight=False)

    def end(self, last: View) -> None:
        self._live.stop()


class _Ticking(ABC):
    """Calls `_tick` from its own thread, so that progress is shown while the driver is busy."""

    def begin(self, look: _Look) -> None:
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._run, args=[look], daemon=True)
        self._ticker.start()

    def end(self, last: View) -> None:
        self._ended.set()
        self._ticker.join()

    def _run(self, look: _Look) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            self._tick(look())

    @abstractmethod
    def _tick(self, view: View) -> None: ...


class _Log(_Ticking):
    """Lines with the time. After a minute without a line, one that shows the search's progress."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def doing(self, what: str) -> None:
        self.say(what)

    def say(self, text: str) -> None:
        self._said_at = time.monotonic()
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)

    def _tick(self, view: View) -> None:
        if time.monotonic() - self._said_at > _SILENCE_SECONDS and (line := view.line()):
            self.say(line)


class _Notebook(_Ticking):
    """A picture that is redrawn, and lines below it."""

    def begin(self, look: _Look) -> None:
        from IPython.display import display  # it is installed in notebooks only

        self._handle = display(Text(""), display_id=True)
        super().begin(look)

    def doing(self, what: str) -> None: ...

    def say(self, text: str) -> None:
        print(text, flush=True)

    def end(self, last: View) -> None:
        super().end(last)
        self._tick(last)  # this picture stays in the notebook

    def _tick(self, view: View) -> None:
        self._handle.update(view.picture(_NOTEBOOK_WIDTH, _NOTEBOOK_HEIGHT))
