"""Every error that the project raises of itself, except those of the server.

    DpoError
      InputError (ValueError)
      BadRow
        TemplateRefusal
      Diverged (ArithmeticError)
      OutOfMemory (MemoryError)
      DeviceFailed
      DiskFull (OSError)
      StoreError (OSError)

In brackets is the built-in error that a class is as well. What only a search raises is in
`tune/errors.py`, under the same root; the server's errors are in `serve/errors.py`.

Errors travel between processes: Python calls the class again with `args`, so these must be what its
constructor takes.
"""

from __future__ import annotations


class DpoError(Exception):
    """The root of the tree."""


class InputError(DpoError, ValueError):
    """What the user gave is wrong. The message says what was given, what is allowed and what
    to type, on one line; only a list of bad rows has several."""


class BadRow(DpoError):
    """Why a row can't be read. `reason` is counted, so it holds no values; `detail` is shown."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason

    def __str__(self) -> str:
        return self.reason


class TemplateRefusal(BadRow):
    """A row that the chat template refuses, with the template's own words."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(
            "refused by the chat template", f"the chat template of {name} refuses it ({words})"
        )
        self.args = (name, words)
        self.words = words


class Diverged(DpoError, ArithmeticError):
    """The training loss became NaN or infinite. The message names step and learning rate."""


class OutOfMemory(DpoError, MemoryError):
    """There was no memory for so many pairs at once."""


class DeviceFailed(DpoError):
    """The GPU failed under a process, which must end; what it computed may go on in another.

    `process` is the number of that process, so that those who shared it can tell that they speak
    of one failure.
    """

    def __init__(self, reason: str, process: int = 0) -> None:
        super().__init__(reason, process)
        self.reason, self.process = reason, process

    def __str__(self) -> str:
        return f"the GPU failed: {self.reason}"


class DiskFull(DpoError, OSError):
    """The disk is full. The message says where."""


class StoreError(DpoError, OSError):
    """The store at a URL did not answer, or not as it should; the message says which and why."""


def one_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its kind if it is silent."""
    return " ".join(str(error).split())[:most] or type(error).__name__
