"""The type of a row: a preference pair as messages, whatever form its dataset has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from pydantic import JsonValue

SPLITS = ("train", "eval", "test")
SYSTEM_ROLES = ("system", "developer")


class Message(TypedDict):
    """A message for a chat template. Only a message with tool calls may lack the content."""

    role: str
    content: NotRequired[str]
    name: NotRequired[JsonValue]
    tool_calls: NotRequired[list[JsonValue]]
    tool_call_id: NotRequired[JsonValue]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    thinking: NotRequired[str]


class RowRecord(TypedDict):
    """A row as one line of rows.jsonl."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: NotRequired[list[Any]]
    chat_template_kwargs: NotRequired[dict[str, JsonValue]]


@dataclass(frozen=True)
class Row:
    """One preference pair. Prompt, chosen and rejected are lists of messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None
    """JSON schemas of the tools that the chat template describes to the model."""
    chat_template_kwargs: dict[str, JsonValue] = field(default_factory=dict)
    """Further variables for the chat template, for example `enable_thinking`."""
    location: str = field(default="", compare=False)
    """File and line, or dataset and row; for messages about this row."""

    @property
    def prompt_key(self) -> str:
        """A text that is equal for rows with the same prompt, whatever their system prompts."""
        turns = [message for message in self.prompt if message["role"] not in SYSTEM_ROLES]
        return json.dumps(turns, ensure_ascii=False)

    def as_json(self) -> RowRecord:
        """Return the row without its location, as `from_json` reads it."""
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
    def from_json(cls, content: RowRecord, location: str = "") -> Row:
        """Return the row of a record that `as_json` made."""
        return cls(**content, location=location)


def text_of(messages: Sequence[Message]) -> str:
    """Return the contents of the messages as one text; a missing content counts as empty."""
    return "".join(message.get("content") or "" for message in messages)


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in messages or other nested values, at any depth, including keys."""
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
    """Return how many elements both sequences begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))
