"""Reads conversations that are written as one text, in the form of HH-RLHF.

"\\n\\nHuman: Hello?\\n\\nAssistant: Hello." A turn begins after an empty line.
Source: Bai et al., Training a Helpful and Harmless Assistant, arXiv:2204.05862.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dpo_train.data.row import Message
from dpo_train.errors import BadRow

_SPEAKER = re.compile(r"(Human|Assistant):[ \t]*")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Return whether a text begins with a human's turn and goes on with an assistant's."""
    if not text.lstrip().startswith("Human:"):
        return False
    turns = _turns(text)
    next(turns)
    second = next(turns, None)
    return second is not None and second[1] == "Assistant"


def _turns(text: str) -> Iterator[re.Match[str]]:
    """Yield where turns begin: at the beginning of the text, and after an empty line."""
    for found in _SPEAKER.finditer(text):
        before = found.start()
        while before and text[before - 1].isspace():
            before -= 1
        if not before or text.count("\n", before, found.start()) > 1:
            yield found


def read_transcript(text: str, part: str) -> list[Message]:
    """Return the turns of a transcript as messages.

    An empty last turn of the assistant in a prompt is left out. Raises BadRow if the turns don't
    alternate.
    """
    turns = list(_turns(text))
    ends = [*(turn.start() for turn in turns[1:]), len(text)]
    messages: list[Message] = [
        {"role": _ROLES[turn[1]], "content": text[turn.end() : end].strip()}
        for turn, end in zip(turns, ends, strict=True)
    ]
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise BadRow(
                "turns that don't alternate",
                f"{part}: turn {number + 1} is by {message['role']!r}, like the turn before it",
            )
    if part == "prompt" and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages
