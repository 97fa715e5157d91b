"""Reads ShareGPT's messages: {from, value}, with ShareGPT's names for the roles."""

from __future__ import annotations

from typing import Any

from dpo_train.data.forms.messages import message_at, read_messages
from dpo_train.data.row import Message
from dpo_train.errors import BadRow

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
    """Return whether a value is a list of ShareGPT's messages, or one of them."""
    return {"from", "value"} <= set(message_at(value, 0))


def read_sharegpt(value: Any, part: str) -> list[Message]:
    """Return the messages of a value. `part` names it in errors. Raises BadRow."""
    messages = [value] if isinstance(value, dict) else value
    return read_messages([_with_role(message, part) for message in messages], part)


def _with_role(message: Any, part: str) -> Message:
    """Return a message as {role, content}."""
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise BadRow("not a message", f"{part}: {message!r:.60} is not a {{from, value}} message")
    role = message.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(
            "unknown role",
            f"{part}: ShareGPT's role {role!r} is not one of {', '.join(_ROLES)}; give tool calls "
            "as `tool_calls` of {role, content} messages",
        )
    return {"role": _ROLES[role], "content": message["value"]}
