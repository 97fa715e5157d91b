"""Markdown by templates whose values are text: whatever a value holds, it makes no markup.

Knows nothing of searches.
"""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_MARKUP = re.compile(r"[\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
"""An underscore inside a word makes none."""
_BEGINS_A_BLOCK = re.compile(r"^(?:[-+=>]|#+|\d+[.)])(?=\s)")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def templates(folder: Path) -> Environment:
    """The templates of a folder. Every value passes `escaped` when it is written."""
    found = Environment(
        loader=FileSystemLoader(folder),
        autoescape=False,  # that is for HTML
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"markdown": Markdown, "code": code, "fenced": fenced}
    return found


def escaped(value: object) -> str:
    """A value as text of one line."""
    if isinstance(value, Markdown):
        return value
    line = " ".join(str(value).split())
    line = _MARKUP.sub(lambda found: "\\" + found[0], line)
    return _BEGINS_A_BLOCK.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def code(value: object) -> Markdown:
    """A value as code inside a line."""
    line = " ".join(str(value).split())
    ticks = _fence(line, 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{space}{line}{space}{ticks}")


def fenced(value: str, language: str) -> Markdown:
    """Lines as a block of code."""
    ticks = _fence(value, 3)
    return Markdown(f"{ticks}{language}\n{value.rstrip()}\n{ticks}")


def _fence(text: str, fewest: int) -> str:
    """More backticks than stand in a row anywhere in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(fewest, longest + 1)
