"""Commands for messages to users. They can be pasted into the shell that called this program."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_SCRIPT = "dpo-tune"


def dpo_tune(*words: str) -> str:
    """Return the `dpo-tune` command with arguments, quoted for the shell."""
    return " ".join([_program(), shlex.join(words)]).strip()


def python_module(name: str, *words: str) -> str:
    """Return `python -m NAME` with arguments, for the Python that runs this program."""
    return shlex.join([_python(), "-m", name, *words])


def script(name: str, *words: str) -> str:
    """Return the command of a program that a package installed beside this Python."""
    return shlex.join([_beside_python(name) or name, *words])


def _program() -> str:
    """Return this program as it was called: `.venv/bin/dpo-tune`, `python -m tune` or `dpo-tune`.

    In a notebook or a script, return the path of `dpo-tune` beside their Python.
    """
    called = Path(sys.argv[0]) if sys.argv else Path()
    if called.name == _SCRIPT:
        found = shutil.which(_SCRIPT)
        is_found = found is not None and os.path.realpath(found) == os.path.realpath(called)
        return _SCRIPT if is_found else shlex.quote(_shortened(called))
    if called.name == "__main__.py" and called.parent.name == "tune":
        return python_module("tune")
    found = _beside_python(_SCRIPT)
    return shlex.quote(found) if found is not None else _SCRIPT


def _python() -> str:
    """Return this Python as the shell finds it: the word that was typed, or its path."""
    typed = sys.orig_argv[0] if sys.orig_argv else ""
    is_found = "/" not in typed and shutil.which(typed) is not None
    return typed if is_found else _shortened(Path(typed or sys.executable))


def _beside_python(name: str) -> str | None:
    """Return a script of this Python's environment: its name if the shell finds it, or its path.

    Returns None if there is no such script.
    """
    beside = Path(sys.executable).parent / name
    if not beside.is_file():
        return None
    found = shutil.which(name)
    if found is not None and os.path.realpath(found) == os.path.realpath(beside):
        return name
    return _shortened(beside)


def _shortened(path: Path) -> str:
    """Return a path below the working directory as a relative path, and any other unchanged."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
