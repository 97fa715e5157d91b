"""All errors that the project itself raises, except those of the server.

    DpoError
      InputError (ValueError)
      BadRow
        TemplateRefusal
      Diverged (ArithmeticError)
      OutOfMemory (MemoryError)
      DeviceFailed
      DiskFull (OSError)
      StoreError (OSError)

A class in brackets is a built-in error that the class also inherits from. Errors that only a search
raises are in `tune/errors.py`, under the same root. Errors of the server are in `serve/errors.py`.

Errors travel between processes: Python calls the class again with its `args`. So `args` must be
what the constructor takes.
"""

from __future__ import annotations


class DpoError(Exception):
    """The root of the tree."""


class InputError(DpoError, ValueError):
    """The user's input is wrong.

    The message says what was given, what is allowed and what to type. It is one line; only a list
    of bad rows has several.
    """


class BadRow(DpoError):
    """A row can't be read.

    Rows are counted by `reason`, so it holds no values of the row. `detail` is shown to the user.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason

    def __str__(self) -> str:
        return self.reason


class TemplateRefusal(BadRow):
    """The chat template refuses a row. `words` is the template's own message."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(
            "refused by the chat template", f"the chat template of {name} refuses it ({words})"
        )
        self.args = (name, words)
        self.words = words


class Diverged(DpoError, ArithmeticError):
    """The training loss became NaN or infinite. The message names step and learning rate."""


class OutOfMemory(DpoError, MemoryError):
    """There was not enough memory for a pass over the pairs."""


class DeviceFailed(DpoError):
    """The GPU of a process failed. The process must end; its trials may go on in another.

    `process` is the id of that process. Several trials may share it, and recognise by the id that
    they report the same failure.
    """

    def __init__(self, reason: str, process: int = 0) -> None:
        super().__init__(reason, process)
        self.reason, self.process = reason, process

    def __str__(self) -> str:
        return f"the GPU failed: {self.reason}"


class DiskFull(DpoError, OSError):
    """The disk is full. The message says where."""


class StoreError(DpoError, OSError):
    """An object store did not answer, or gave a wrong answer. The message says which, and why."""


def one_line(error: object, most: int = 200) -> str:
    """Return an error's message on one line of at most `most` characters; its class if empty."""
    return " ".join(str(error).split())[:most] or type(error).__name__
