"""Reads lists of {role, content} messages for chat templates, with tool calls and reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from dpo_train.data.row import Message
from dpo_train.errors import BadRow

ROLES = ("system", "developer", "user", "assistant", "tool")
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content",
           "reasoning", "thinking")  # fmt: skip
"""The fields of a message that chat templates read. Others, such as an id, are dropped."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("image", "image_url", "audio", "video", "input_audio")


def message_at(value: Any, index: int) -> Mapping[str, object]:
    """Return the first (0) or last (-1) message of a list, or a single message itself.

    Returns an empty mapping for any other value.
    """
    message = value[index] if isinstance(value, list) and value else value
    return message if isinstance(message, dict) else {}


def is_messages(value: Any) -> bool:
    """Return whether a value is a list of messages, or one message."""
    return "role" in message_at(value, 0)


def read_messages(value: Any, part: str) -> list[Message]:
    """Return the checked messages of a value. `part` names it in errors. Raises BadRow."""
    messages = [value] if isinstance(value, dict) else value
    return [_message(message, part) for message in messages]


def _message(message: Any, part: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRow("not a message", f"{part}: {message!r:.60} is not a {{role, content}} message")
    role = message["role"]
    if role not in ROLES:
        raise BadRow(
            "unknown role",
            f"{part}: the role {role!r} is not one of {', '.join(ROLES)}; rename it (human to "
            "user, gpt to assistant)",
        )
    # Only an assistant may call tools.
    read = {name: message[name] for name in _FIELDS if message.get(name) is not None}
    if not read.get("tool_calls"):
        read.pop("tool_calls", None)
    elif role != "assistant" or not _are_calls(read["tool_calls"]):
        raise BadRow(
            "tool calls that can't be read",
            f"{part}: tool_calls of {role!r} are {read['tool_calls']!r:.60}; only an assistant "
            "may have them, as a list of {function: {name, arguments}}",
        )
    # Reasoning and content must be texts.
    for name in _REASONING:
        if not isinstance(read.get(name, ""), str):
            shown = f"{part}: {name} is {read[name]!r:.60}, not a text"
            raise BadRow("reasoning that is not a text", shown)
    content = read.get("content")
    if isinstance(content, list):
        read["content"] = _text_of_parts(content, part)
    elif content is None and not read.get("tool_calls"):
        raise BadRow("a message without content", f"{part}: the content of {role!r} is null")
    elif content is not None and not isinstance(content, str):
        shown = f"{part}: the content {content!r:.60} is not a text"
        raise BadRow("content that is not a text", shown)
    return cast(Message, read)


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict)
        and isinstance((call.get("function") or call), dict)
        and isinstance((call.get("function") or call).get("name"), str)
        for call in calls
    )


def _text_of_parts(parts: Sequence[Any], part: str) -> str:
    """Return the text of a content that is a list of parts, as for models that see images."""
    texts = []
    for each in parts:
        kind = each.get("type") if isinstance(each, dict) else None
        if kind in _MEDIA or (isinstance(each, dict) and set(_MEDIA) & set(each)):
            shown = f"{part}: its content has a part of type {kind!r}; only text is trained"
            raise BadRow("images, audio or video", shown)
        if kind != "text" or not isinstance(each.get("text"), str):
            shown = f"{part}: the content part {each!r:.60} is not a text"
            raise BadRow("content that is not a text", shown)
        texts.append(each["text"])
    return "".join(texts)
