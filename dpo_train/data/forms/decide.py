"""Decides the form of a whole dataset once, from all its rows, and reads its rows in that form.

A row in another form than most rows is a bad row. The form is never guessed for a single row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from dpo_train.data.columns import Parts
from dpo_train.data.forms.checks import check_row
from dpo_train.data.forms.conversations import cut_conversations, is_whole
from dpo_train.data.forms.messages import is_messages, message_at, read_messages
from dpo_train.data.forms.sharegpt import is_sharegpt, read_sharegpt
from dpo_train.data.forms.texts import cut_whole_texts, refuse_markup
from dpo_train.data.forms.transcripts import is_transcript, read_transcript
from dpo_train.data.row import SYSTEM_ROLES, Message, Row, text_of
from dpo_train.errors import BadRow, InputError

_SIDES = ("chosen", "rejected")
TEXTS, TRANSCRIPTS = "texts", "transcripts"
MESSAGES, SHAREGPT = "messages", "ShareGPT's messages"
_READERS: dict[str, Callable[[Any, str], list[Message]]] = {
    TRANSCRIPTS: read_transcript,
    MESSAGES: read_messages,
    SHAREGPT: read_sharegpt,
}
_MESSAGE_START = re.compile(r"""\s*\[?\s*\{\s*["'](role|from|content|value)["']\s*:""")
_RESERVED = {"messages", "tools", "add_generation_prompt", "tokenize", "return_dict",
             "chat_template", "continue_final_message"}  # fmt: skip
"""Parameters of the tokenizer's `apply_chat_template`, which a row may not set."""


@dataclass(frozen=True)
class Form:
    """The form in which every row of a dataset is read."""

    prompt: str | None
    """The kind of the prompt column; None if there is no such column."""
    answers: str
    """The kind of chosen and rejected."""
    whole: bool
    """Whether chosen and rejected begin with the prompt."""

    def __str__(self) -> str:
        what = "answers"
        if self.whole:
            what = "whole texts" if self.answers == TEXTS else "whole conversations"
        if self.answers in (TRANSCRIPTS, SHAREGPT):
            what += f" ({self.answers})"
        if self.prompt is None:
            return f"{what}, their common beginning is the prompt"
        prompt = "prompt" if self.prompt in (TEXTS, MESSAGES) else f"prompt ({self.prompt})"
        return f"{prompt} + {what}"


def decide(rows: Sequence[Parts]) -> Form:
    """Return the form of most rows. Raises InputError if no row has a prompt in a known form."""
    prompts = _kinds(parts.get("prompt") for parts in rows)
    answers = _kinds(parts.get(side) for parts in rows for side in _SIDES)
    prompt, answer = _most(prompts), _most(answers) or TEXTS
    unknown = [parts["prompt"] for parts in rows if parts.get("prompt") is not None]
    if prompt is None and unknown:
        raise InputError(
            f"data: prompt is {unknown[0]!r:.60}, neither a text nor a list of messages; say where "
            "the prompt stands: type `--set data.columns.prompt=NAME`, or a path such as NAME[0]"
        )
    return Form(prompt, answer, _is_whole(rows, prompt, answer))


def read_row(parts: Parts, form: Form, location: str) -> Row:
    """Return the row of a record in a form. Raises BadRow."""
    # The prompt column, if there is one.
    prompt = None
    if form.prompt is not None:
        prompt = _read(_given(parts, "prompt"), form.prompt, "prompt")
    # The answers; if they contain the prompt, they are cut.
    given = [_given(parts, side) for side in _SIDES]
    if form.answers == TEXTS and form.whole:
        prompt, chosen, rejected = _read_whole_texts(prompt, *given)
    else:
        chosen, rejected = (
            _read(value, form.answers, side) for value, side in zip(given, _SIDES, strict=True)
        )
        if form.prompt == TRANSCRIPTS and form.answers == TEXTS:
            # The prompt ends with "Assistant:", so the space before an answer is removed.
            for answer in (*chosen, *rejected):
                answer["content"] = answer["content"].strip()
        if form.whole:
            prompt, chosen, rejected = cut_conversations(prompt, chosen, rejected)
    # System prompt, tools and variables come from columns of their own.
    assert prompt is not None
    row = Row(
        [*_read_system(parts.get("system"), prompt), *prompt],
        chosen,
        rejected,
        _read_tools(parts.get("tools")),
        _read_variables(parts.get("chat_template_kwargs")),
        location,
    )
    check_row(row)
    return row


# --- the form of all rows ----------------------------------------------------------------------


def _kinds(values: Iterable[Any]) -> Counter[str]:
    return Counter(kind for value in values if (kind := _kind(value)) is not None)


def _kind(value: Any) -> str | None:
    value = _from_json_text(value)
    if isinstance(value, str):
        return TRANSCRIPTS if is_transcript(value) else TEXTS
    if is_sharegpt(value):
        return SHAREGPT
    return MESSAGES if is_messages(value) else None


def _most(kinds: Counter[str]) -> str | None:
    return max(kinds, key=lambda kind: kinds[kind]) if kinds else None


def _is_whole(rows: Sequence[Parts], prompt: str | None, answers: str) -> bool:
    if prompt is None or answers == TRANSCRIPTS:
        return True
    if answers == TEXTS:
        return prompt != TRANSCRIPTS and _most_begin_with_prompt(rows)
    begins = Counter(
        is_whole(_from_json_text(parts.get(side))) for parts in rows for side in _SIDES
    )
    return begins[True] > begins[False]


def _most_begin_with_prompt(rows: Sequence[Parts]) -> bool:
    """Return whether chosen and rejected begin with the prompt in most rows.

    A single answer may repeat its question, so most rows decide.
    """
    begins: Counter[bool] = Counter()
    for parts in rows:
        prompt = _last_text(_from_json_text(parts.get("prompt")))
        texts = [text for side in _SIDES if isinstance(text := parts.get(side), str)]
        if prompt and texts:
            begins[all(text.startswith(prompt) for text in texts)] += 1
    return begins[True] > begins[False]


def _last_text(prompt: Any) -> str:
    """Return a prompt that is a text, or the text of its last message."""
    last = message_at(prompt, -1)
    text = last.get("content", last.get("value")) if last else prompt
    return text if isinstance(text, str) else ""


# --- the parts of one row ----------------------------------------------------------------------


def _given(parts: Parts, part: str) -> Any:
    value = _from_json_text(parts.get(part))
    if value is None:
        raise BadRow(f"no {part}", f"{part} is {'null' if part in parts else 'missing'}")
    return value


def _read(value: Any, kind: str, part: str) -> list[Message]:
    if isinstance(value, str) and _looks_like_messages(value):
        raise BadRow(
            "messages that are not JSON",
            f"{part} is a list of messages as text, but not JSON: {value!r:.50}; write the column "
            "with json.dumps",
        )
    if kind == TEXTS and isinstance(value, str):
        if is_transcript(value):
            raise _another_form(part, TRANSCRIPTS, kind)
        refuse_markup(value, part)
        return [{"role": "user" if part == "prompt" else "assistant", "content": value}]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        raise BadRow(
            "a list of texts",
            f"{part} is a list of texts, {value!r:.60}, and a pair has one; choose one by its "
            f"number, like `--set 'data.columns.{part}=COLUMN[0]'`",
        )
    found = _kind(value)
    if kind != TEXTS and value == []:
        return []
    if found == kind:
        return _READERS[kind](value, part)
    raise _another_form(part, f"{value!r:.60}" if found is None else found, kind)


def _another_form(part: str, shown: str, kind: str) -> BadRow:
    return BadRow(
        "another form than most rows have", f"{part} is {shown}, where most rows have {kind}"
    )


def _read_whole_texts(
    prompt: list[Message] | None, chosen: Any, rejected: Any
) -> tuple[list[Message], list[Message], list[Message]]:
    for part, text in (("chosen", chosen), ("rejected", rejected)):
        _read(text, TEXTS, part)
    if prompt is None:
        question, chosen, rejected = cut_whole_texts(chosen, rejected)
        prompt = _read(question, TEXTS, "prompt")
    else:
        question = text_of(prompt[-1:])
        for part, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.startswith(question):
                raise BadRow(
                    "a text that doesn't begin with its prompt",
                    f"{part} does not begin with the prompt {question!r:.40}, as in most rows",
                )
        chosen, rejected = chosen[len(question) :], rejected[len(question) :]
    return prompt, _read(chosen, TEXTS, "chosen"), _read(rejected, TEXTS, "rejected")


def _read_system(value: Any, prompt: Sequence[Message]) -> list[Message]:
    """Return the messages of the system column that go before the prompt."""
    value = _from_json_text(value)
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        system: list[Message] = [{"role": "system", "content": value}]
    elif is_messages(value):
        system = read_messages(value, "system")
    else:
        raise BadRow("a system prompt that is not a text", f"system is {value!r:.60}, not a text")
    if not all(message["role"] in SYSTEM_ROLES for message in system):
        raise BadRow("a system prompt by another role", "system has a message of another role")
    if prompt and prompt[0]["role"] in SYSTEM_ROLES:
        if prompt[: len(system)] != system:
            raise BadRow(
                "two system prompts",
                f"the system column has {text_of(system)!r:.40}, and the messages have "
                f"{text_of(prompt[:1])!r:.40}; type `--set data.columns.system=null` to use the "
                "messages'",
            )
        return []
    return system


def _read_tools(value: Any) -> list[Any] | None:
    tools = _json_or_bad(value, "tools")
    if not tools:
        return None
    if not (
        isinstance(tools, list) and all(isinstance(t, dict) for t in tools) and _is_json(tools)
    ):
        raise BadRow("tools that can't be read", f"tools is {tools!r:.60}, not a list of schemas")
    return tools


def _read_variables(value: Any) -> dict[str, JsonValue]:
    variables = _json_or_bad(value, "chat_template_kwargs")
    if not variables:
        return {}
    if not isinstance(variables, dict) or set(variables) & _RESERVED or not _is_json(variables):
        raise BadRow(
            "chat_template_kwargs that can't be read",
            f"chat_template_kwargs is {variables!r:.60}, not a mapping of a chat template's own "
            "variables",
        )
    return variables


def _json_or_bad(value: Any, part: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        shown = f"{part} is not JSON: {value!r:.60}"
        raise BadRow(f"{part} that can't be read", shown) from None


def _from_json_text(value: Any) -> Any:
    """Return the messages of a JSON text, as CSV files hold them; any other value unchanged."""
    if isinstance(value, str) and _looks_like_messages(value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON: a chat template may write it so."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _looks_like_messages(text: str) -> bool:
    return text[:20].lstrip()[:1] in ("[", "{") and _MESSAGE_START.match(text) is not None
