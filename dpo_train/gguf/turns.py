"""Finds the fixed texts that a chat template writes around the turns of a conversation.

Problem: Ollama has Go templates, and Jinja can't be translated to them in general. But most chat
templates write a fixed text before and after each message. So we let the template write a few
conversations, and read these texts from them. Then we write other conversations with the texts. If
the template writes one of them differently, it can't be translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_train.reference_pass.chat_template import TEMPLATE_DATE, ChatTemplate

Message = dict[str, str]


@dataclass(frozen=True)
class Turns:
    """The texts that a chat template writes around messages."""

    without_system: str
    """The start of a conversation without a system prompt: a default system prompt, or nothing."""
    around: dict[str, tuple[str, str]]
    """The texts before and after a message's content, by role."""
    answer: str
    """The text that begins the model's answer."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt of a conversation, as the template writes it."""
        has_system = any(message["role"] == "system" for message in messages)
        text = "" if has_system else self.without_system
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + self.answer


@dataclass(frozen=True)
class Reading:
    """What was found out about a chat template."""

    turns: Turns | None
    why_not: str = ""
    """Why `turns` is None."""
    notes: tuple[str, ...] = ()
    """Notes for the user on what `turns` do differently, a line each."""


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


_SYSTEM, _QUESTION, _ANSWER, _FOLLOW_UP = (
    _turn(role, f"{role}0text{number}")
    for number, role in enumerate(("system", "user", "assistant", "user"))
)
_PROBES: tuple[list[Message], ...] = (
    [_turn("user", "Why? " * 99 + "End.")],
    [_turn("user", "one\n\ntwo"), _turn("assistant", "- a\n- b"), _turn("user", "{{ 3 }} é")],
    [_turn("user", word) if at % 2 == 0 else _turn("assistant", word)
     for at, word in enumerate("abcdefg")],
)  # fmt: skip
_EDITED = {
    "takes thoughts out of earlier answers": [
        _turn("user", "a"),
        _turn("assistant", "<think>\nb\n</think>\n\nc"),
        _turn("user", "d"),
    ],
    "takes white space off the ends of messages": [_turn("user", " a\n")],
}
"""What templates may do to the content of messages, with a conversation that shows it."""


def read(tokenizer: Any, adds_bos: bool) -> Reading:
    """Find the texts of a tokenizer's chat template, and check them on several conversations.

    With `adds_bos` the reader of the prompt adds bos, so the texts do not contain it.
    """
    template = ChatTemplate(tokenizer, "the model")  # it fixes the date that a template may write

    def write(messages: list[Message], answers: bool = True) -> str:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answers
        )
        return str(text).removeprefix(tokenizer.bos_token) if adds_bos else str(text)

    try:
        turns = _find_turns(write)
    except Exception as error:  # a template may raise any error; then the TEMPLATE is left out
        return Reading(None, f"its texts can't be found ({type(error).__name__})")

    # The texts must give what the template writes for every probe.
    probes = [*_PROBES]
    if "system" in turns.around:
        probes += [[_turn("system", "Be brief."), *probe] for probe in _PROBES]
    if wrong := next((probe for probe in probes if write(probe) != turns.render(probe)), None):
        return Reading(None, f"it writes more than fixed texts around {len(wrong)} messages")

    # Smaller differences become notes.
    notes = []
    if "system" not in turns.around:
        notes.append("the chat template takes no system prompt, so Ollama leaves it out")
    if template.writes_date:
        day = f"{TEMPLATE_DATE.day} {TEMPLATE_DATE:%B %Y}"
        notes.append(f"the chat template writes today's date; in TEMPLATE it stays {day}")
    for what, probe in _EDITED.items():
        if write(probe) != turns.render(probe):
            notes.append(f"the chat template {what}; TEMPLATE does not")
    return Reading(turns, notes=tuple(notes))


def _find_turns(write: Any) -> Turns:
    """Return the texts around messages, found in five conversations. Raises ValueError for none."""
    start, after_user = _between(write([_QUESTION], False), _QUESTION)
    _, answer = _between(write([_QUESTION]), _QUESTION)
    _, after_answer = _between(write([_QUESTION, _ANSWER], False), _ANSWER)
    _, first, second, _ = _between(
        write([_QUESTION, _ANSWER, _FOLLOW_UP]), _QUESTION, _ANSWER, _FOLLOW_UP
    )
    before_user = _without_prefix(second, after_answer)
    around = {
        "user": (before_user, after_user),
        "assistant": (_without_prefix(first, after_user), after_answer),
    }
    without_system = _without_suffix(start, before_user)
    try:
        before, after, _ = _between(write([_SYSTEM, _QUESTION]), _SYSTEM, _QUESTION)
        around["system"] = (before, _without_suffix(after, before_user))
    except Exception:  # a template without system prompts drops them, or raises any error
        pass
    return Turns(without_system, around, _without_prefix(answer, after_user))


def _between(text: str, *messages: Message) -> list[str]:
    """Return the parts of a text before, between and after the contents of messages."""
    parts = []
    for message in messages:
        before, found, text = text.partition(message["content"])
        if not found:
            raise ValueError(f"{message['role']} is not written")
        parts.append(before)
    return [*parts, text]


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError("no fixed text after a message")
    return text[len(prefix) :]


def _without_suffix(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise ValueError("no fixed text before a message")
    return text[: len(text) - len(suffix)]
