"""The row type: a preference pair as messages, whatever form its dataset has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from pydantic import JsonValue

SPLITS = ("train", "eval", "test")
SYSTEM_ROLES = ("system", "developer")


class Message(TypedDict):
    """A message as chat templates take it; only one with tool calls may lack the content."""

    role: str
    content: NotRequired[str]
    name: NotRequired[JsonValue]
    tool_calls: NotRequired[list[JsonValue]]
    tool_call_id: NotRequired[JsonValue]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    thinking: NotRequired[str]


class RowRecord(TypedDict):
    """A row as its line of rows.jsonl has it."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: NotRequired[list[Any]]
    chat_template_kwargs: NotRequired[dict[str, JsonValue]]


@dataclass(frozen=True)
class Row:
    """One preference pair; each part is a list of messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None
    """JSON schemas of the tools that the chat template describes to the model."""
    chat_template_kwargs: dict[str, JsonValue] = field(default_factory=dict)
    """Further variables of the chat template, for example `enable_thinking`."""
    place: str = field(default="", compare=False)
    """File and line, or dataset and row; for messages about this row."""

    @property
    def prompt_key(self) -> str:
        """The same for rows that ask the same, whatever the system prompt."""
        turns = [message for message in self.prompt if message["role"] not in SYSTEM_ROLES]
        return json.dumps(turns, ensure_ascii=False)

    def as_json(self) -> RowRecord:
        """What `from_json` reads; the place is not part of it."""
        content: RowRecord = {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
        }
        if self.tools:
            content["tools"] = self.tools
        if self.chat_template_kwargs:
            content["chat_template_kwargs"] = self.chat_template_kwargs
        return content

    @classmethod
    def from_json(cls, content: RowRecord, place: str = "") -> Row:
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
