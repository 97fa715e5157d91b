"""Commands that a message names, as they can be pasted into the shell from which this program was
called.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_SCRIPT = "dpo-tune"


def dpo_tune(*words: str) -> str:
    """`dpo-tune` with arguments, quoted for the shell; a path stands as it was given."""
    return " ".join([_program(), shlex.join(words)]).strip()


def python_module(name: str, *words: str) -> str:
    """`python -m NAME` with arguments, by the Python that runs here."""
    return shlex.join([_python(), "-m", name, *words])


def script(name: str, *words: str) -> str:
    """A program that a package installed beside this Python, with arguments."""
    return shlex.join([_beside_python(name) or name, *words])


def _program() -> str:
    """`.venv/bin/dpo-tune`, `python -m tune`, or plain `dpo-tune`: however it was called. Called
    from a notebook or a script, it is the program beside their Python."""
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
    """This Python as the shell finds it: as it was typed, or its path."""
    typed = sys.orig_argv[0] if sys.orig_argv else ""
    is_found = "/" not in typed and shutil.which(typed) is not None
    return typed if is_found else _shortened(Path(typed or sys.executable))


def _beside_python(name: str) -> str | None:
    """A script of this Python's environment: its name where the shell finds it, else its path."""
    beside = Path(sys.executable).parent / name
    if not beside.is_file():
        return None
    found = shutil.which(name)
    if found is not None and os.path.realpath(found) == os.path.realpath(beside):
        return name
    return _shortened(beside)


def _shortened(path: Path) -> str:
    """The path from here, where it lies below."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
