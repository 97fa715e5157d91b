"""ShareGPT's messages: {from, value}, with its names for the roles."""

from __future__ import annotations

from typing import Any

from dpo_train.data.bad_rows import BadRow
from dpo_train.data.row import Message

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}


def is_sharegpt(value: Any) -> bool:
    """Whether a value is a list of ShareGPT's messages, or one of them."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "from" in first and "value" in first


def read_sharegpt(value: Any, part: str) -> list[Message]:
    """The messages of a value. Raises BadRow."""
    messages = [value] if isinstance(value, dict) else value
    return [_message(message, part) for message in messages]


def _message(message: Any, part: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise BadRow("not a message", f"{part}: {message!r:.60} is not a {{from, value}} message")
    role = message.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(
            "unknown role",
            f"{part}: ShareGPT's role {role!r} is none of {', '.join(_ROLES)}; give tool calls as "
            "`tool_calls` of {role, content} messages",
        )
    return {"role": _ROLES[role], "content": message["value"]}
