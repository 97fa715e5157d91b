"""The row type: a preference pair as messages, whatever form its dataset has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""role and content; an assistant's may have tool_calls or reasoning_content, a tool's a name."""
SPLITS = ("train", "eval", "test")
SYSTEM_ROLES = ("system", "developer")
_PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Row:
    """One preference pair; each part is a list of messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None
    """JSON schemas of the tools that the chat template describes to the model."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, for example `enable_thinking`."""
    place: str = field(default="", compare=False)
    """File and line, or dataset and row; for messages about this row."""

    @property
    def prompt_key(self) -> str:
        """The same for rows that ask the same, whatever the system prompt."""
        turns = [message for message in self.prompt if message["role"] not in SYSTEM_ROLES]
        return json.dumps(turns, ensure_ascii=False)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads; the place is not part of it."""
        content: dict[str, Any] = {name: getattr(self, name) for name in _PARTS}
        if self.tools:
            content["tools"] = self.tools
        if self.chat_template_kwargs:
            content["chat_template_kwargs"] = self.chat_template_kwargs
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any], place: str = "") -> Row:
        return cls(**content, place=place)


def text_of(messages: Sequence[Message]) -> str:
    """The contents of the messages as one text; a tool call's missing content is empty."""
    return "".join(message.get("content") or "" for message in messages)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in messages or other nested values, at any depth, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


def shared_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many elements stand at the beginning of both."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))
