"""Renders the Go templates of our Modelfiles, which use only a small part of the language."""

import re
from collections.abc import Sequence
from typing import Any

_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def render(template: str, messages: Sequence[dict[str, str]]) -> str:
    """Return the prompt as Ollama writes it, from `.System` and all `.Messages`."""
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
    text, ended = _block(_ACTION.split(template), 0, {".System": system, ".Messages": messages})
    assert ended == -1, "an `end` too many"
    return text


def _block(parts: list[str], at: int, values: dict[str, Any]) -> tuple[str, int]:
    """Return the text up to an `end` or `else`, and its index; -1 at the end of the template."""
    text = parts[at]
    while at + 1 < len(parts):
        action, at = parts[at + 1], at + 2
        if action == "end" or action.startswith("else"):
            return text, at - 1
        if action == ".Content":
            text += values[".Content"]
        elif action == "range .Messages":
            ended = at
            for message in values[".Messages"]:
                turn = {**values, ".Content": message["content"], ".Role": message["role"]}
                more, ended = _block(parts, at, turn)
                text += more
            at = ended + 1
        else:
            more, at = _choice(parts, action, at, values)
            text += more
        text += parts[at]
    return text, -1


def _choice(parts: list[str], action: str, at: int, values: dict[str, Any]) -> tuple[str, int]:
    """Return the text of the first branch that holds, and the index of the text after `end`."""
    chosen = ""
    is_chosen = False
    while True:
        more, ended = _block(parts, at, values)
        if not is_chosen and _holds(action, values):
            chosen, is_chosen = more, True
        if parts[ended] == "end":
            return chosen, ended + 1
        action, at = parts[ended].removeprefix("else "), ended + 1


def _holds(action: str, values: dict[str, Any]) -> bool:
    if action == "if not .System":
        return not values[".System"]
    compared = re.fullmatch(r'if eq \.Role "(\w+)"', action)
    assert compared, f"{action!r} is not used in our templates"
    return bool(values[".Role"] == compared[1])
