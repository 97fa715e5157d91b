"""Renders Markdown templates so that values stay plain text: no value can add markup.

Knows nothing of searches.
"""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_MARKUP = re.compile(r"[\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
"""Characters that may be markup. An underscore inside a word is not."""
_BEGINS_A_BLOCK = re.compile(r"^(?:[-+=>]|#+|\d+[.)])(?=\s)")


class Markdown(str):
    """Text that is already Markdown, so it is not escaped."""

    __slots__ = ()


def templates(folder: Path) -> Environment:
    """Returns the templates of a folder. Each value passes `escaped` when it is rendered."""
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
    """Returns a value as one line of text without markup."""
    if isinstance(value, Markdown):
        return value
    line = " ".join(str(value).split())
    line = _MARKUP.sub(lambda found: "\\" + found[0], line)
    return _BEGINS_A_BLOCK.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def code(value: object) -> Markdown:
    """Returns a value as code within a line."""
    line = " ".join(str(value).split())
    ticks = _fence(line, 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{space}{line}{space}{ticks}")


def fenced(value: str, language: str) -> Markdown:
    """Returns lines as a fenced block of code."""
    ticks = _fence(value, 3)
    return Markdown(f"{ticks}{language}\n{value.rstrip()}\n{ticks}")


def _fence(text: str, fewest: int) -> str:
    """Returns more backticks than the longest run of them in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(fewest, longest + 1)
