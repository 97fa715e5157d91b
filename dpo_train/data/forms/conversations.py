"""Pairs whose chosen and rejected are whole conversations, with or without a prompt column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_train.data.forms.messages import message_at
from dpo_train.data.row import SYSTEM_ROLES, Message, shared_length
from dpo_train.errors import BadRow

_BEGINNERS = (*SYSTEM_ROLES, "user", "human")


def is_whole(value: Any) -> bool:
    """Return whether messages of any form begin a conversation, and are not just an answer."""
    first = message_at(value, 0)
    return first.get("role", first.get("from")) in _BEGINNERS


def cut_conversations(
    prompt: Sequence[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return prompt, chosen and rejected: the turns that both share are the prompt.

    TRL's `extract_prompt` does the same. If `prompt` is given, both conversations must begin with
    it. Raises BadRow if they don't, and if the conversations have no turn in common.
    """
    if prompt is not None:
        for part, whole in (("chosen", chosen), ("rejected", rejected)):
            _refuse_another_beginning(prompt, whole, part)
    end = shared_length(chosen, rejected)
    # An answer that both share at the end belongs to the completions, not to the prompt.
    while end and chosen[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise BadRow("no prompt", "no prompt: chosen and rejected begin differently")
    if prompt is None or _has_system(chosen) or not _has_system(prompt):
        return chosen[:end], chosen[end:], rejected[end:]
    system = [message for message in prompt if message["role"] in SYSTEM_ROLES]
    return [*system, *chosen[:end]], chosen[end:], rejected[end:]


def _refuse_another_beginning(
    prompt: Sequence[Message], whole: Sequence[Message], part: str
) -> None:
    if _has_system(prompt) and _has_system(whole):
        expected, beginning = list(prompt), list(whole)
    else:
        expected, beginning = _without_system(prompt), _without_system(whole)
    if not expected:
        raise BadRow("empty prompt", "the prompt has only a system message")
    if [_turn(message) for message in expected] != [
        _turn(message) for message in beginning[: len(expected)]
    ]:
        first = _turn(beginning[0])[1] if beginning else ""
        raise BadRow(
            "a conversation that doesn't begin with its prompt",
            f"{part} begins with {first!r:.50} and not with the prompt "
            f"{_turn(expected[0])[1]!r:.50}",
        )


def _turn(message: Message) -> tuple[str, str]:
    """Return role and text of a message, which are compared."""
    return message["role"], (message.get("content") or "").strip()


def _without_system(messages: Sequence[Message]) -> list[Message]:
    start = 0
    while start < len(messages) and messages[start]["role"] in SYSTEM_ROLES:
        start += 1
    return list(messages[start:])


def _has_system(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0]["role"] in SYSTEM_ROLES
