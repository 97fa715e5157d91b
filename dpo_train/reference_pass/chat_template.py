"""Writes rows as text with a model's chat template, as TRL does, and checks what it can't write.

This module knows no token ids.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dpo_train.data import Message, Row
from dpo_train.errors import InputError, TemplateRefusal, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = datetime.datetime(2026, 1, 1)
"""The date for a template that writes today's date, so that a row's tokens never change."""
_PROBED = 50
"""Most rows with some feature that are rendered to see whether the template writes it."""


@dataclass(frozen=True)
class Rendered:
    """The three texts of a row. `chosen` and `rejected` are whole conversations with the prompt."""

    prompt: str
    chosen: str
    rejected: str


class ChatTemplate:
    """Writes rows with a tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.writes_date = False
        self._tokenizer = tokenizer
        self._name = name
        self._fix_date()

    def render(self, row: Row) -> Rendered:
        """Return the texts of a row. Raises TemplateRefusal if the template refuses it."""
        return Rendered(
            self.prompt(row),
            self._render(row, row.chosen),
            self._render(row, row.rejected),
        )

    def prompt(self, row: Row) -> str:
        """Return the prompt with the beginning of the answer's turn. Raises TemplateRefusal."""
        return self._render(row, [], add_generation_prompt=True)

    def check(self, rows: Sequence[Row]) -> list[str]:
        """Return notes for the user on how the template writes these rows, a line each.

        Raises InputError if the template does not write something that the rows have.
        """
        self._check_system(rows)
        for role in ("developer", "tool"):
            self._check_role(role, rows)
        for name, has, without in _FEATURES:
            if having := self._ignored(rows, has, without):
                raise InputError(
                    f"model.id: the chat template of {self._name} does not write `{name}`, which "
                    f"{having:,} of {len(rows):,} rows have; give a model whose template does, or "
                    "rows without it"
                )
        return [
            *self._check_variables(rows),
            *self._check_beginning(rows),
            *self._note_on_date(),
        ]

    def _render(self, row: Row, answer: list[Message], **options: Any) -> str:
        import jinja2  # a part of transformers, which is slow to import

        try:
            text = self._tokenizer.apply_chat_template(
                row.prompt + answer,
                tokenize=False,
                tools=row.tools,
                **options,
                **row.chat_template_kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise TemplateRefusal(self._name, one_line(error)) from None
        return str(text)

    def _fix_date(self) -> None:
        """Give the template a fixed date. transformers compiles it once for a process."""
        from transformers.utils import chat_template_utils  # slow to import

        def strftime_now(form: str) -> str:
            self.writes_date = True
            return TEMPLATE_DATE.strftime(form)

        templates = self._tokenizer.chat_template
        for template in templates.values() if isinstance(templates, dict) else [templates]:
            compiled = chat_template_utils._compile_jinja_template(template)
            compiled.environment.globals["strftime_now"] = strftime_now

    def _note_on_date(self) -> Iterator[str]:
        if self.writes_date:
            yield (
                f"the chat template of {self._name} writes today's date; the pairs are written "
                f"with the date {TEMPLATE_DATE.day} {TEMPLATE_DATE:%B %Y}, so that their tokens "
                "stay the same"
            )

    def _check_system(self, rows: Sequence[Row]) -> None:
        with_system = [row for row in rows if row.prompt[0]["role"] == "system"]
        if not with_system:
            return
        fault = "does not write system prompts"
        for row in with_system[:_PROBED]:
            try:
                alone = self._render(replace(row, prompt=row.prompt[1:]), [])
            except TemplateRefusal:
                return  # the template refuses this row for another reason, so it is a bad row
            try:
                if self._render(row, []) != alone:
                    return
            except TemplateRefusal as refusal:
                fault = f"refuses system prompts ({refusal.words})"
                break
        raise InputError(
            f"model.id: the chat template of {self._name} {fault}, which {len(with_system):,} of "
            f"{len(rows):,} rows have; type `--set data.columns.system=null` if they come from the "
            "system column, give rows without them, or a model whose template takes them"
        )

    def _check_role(self, role: str, rows: Sequence[Row]) -> None:
        """Raise InputError if the template leaves out messages of this role."""
        having = [row for row in rows if any(m["role"] == role for m in _messages(row))]
        for row in having[:_PROBED]:
            try:
                texts = self.render(row)
            except TemplateRefusal:
                return  # this is a bad row, which is reported elsewhere
            written = texts.chosen + texts.rejected
            contents = [m.get("content") or "" for m in _messages(row) if m["role"] == role]
            if all(content.strip() in written for content in contents):
                return
        if having:
            raise InputError(
                f"model.id: the chat template of {self._name} does not write messages of the role "
                f"{role!r}, which {len(having):,} of {len(rows):,} rows have; give a model whose "
                "template does, or rows without them"
            )

    def _ignored(
        self, rows: Sequence[Row], has: Callable[[Row], bool], without: Callable[[Row], Row]
    ) -> int:
        """Return how many rows have a feature, if the template ignores it; otherwise 0.

        The template ignores it if it writes the same with the feature and without.
        """
        having = [row for row in rows if has(row)]
        for row in having[:_PROBED]:
            try:
                if self.render(row) != self.render(without(row)):
                    return 0
            except TemplateRefusal:
                return 0
        return len(having)

    def _check_variables(self, rows: Sequence[Row]) -> Iterator[str]:
        if self._ignored(
            rows,
            lambda row: bool(row.chat_template_kwargs),
            lambda row: replace(row, chat_template_kwargs={}),
        ):
            names = {name for row in rows for name in row.chat_template_kwargs}
            yield (
                f"the chat template of {self._name} does not use the rows' chat_template_kwargs "
                f"({', '.join(sorted(names))})"
            )

    def _check_beginning(self, rows: Sequence[Row]) -> Iterator[str]:
        """Check that the answers of the data begin as the template begins a model's answer.

        Yields a note for the user if they don't. Raises InputError if <think> would be missing.
        """
        lost: list[str] = []
        probed = 0
        for row in rows[:_PROBED]:
            try:
                texts = self.render(row)
                opened = texts.prompt.removeprefix(self._render(row, []))
            except TemplateRefusal:
                continue
            probed += 1
            if texts.chosen.startswith(texts.prompt) and texts.rejected.startswith(texts.prompt):
                continue
            lost.append(opened)
        if not lost or len(lost) < probed:
            return
        opened = lost[0]
        if "<think>" in opened and "</think>" not in opened:
            raise InputError(
                f"model.id: the chat template of {self._name} opens <think> before an answer, but "
                "the answers have no thoughts, so the model would be trained on other texts than "
                "it gets when it is served; give each answer a `reasoning_content`, or save a "
                "tokenizer whose template does not open <think>"
            )
        yield (
            f"the chat template of {self._name} begins an answer with {opened!r:.60}, but writes "
            "something else before the answers of the data; the difference is trained as part of "
            "the answer, as in TRL"
        )


# --- what a row may have beside its texts ------------------------------------------------------


_REASONING = ("reasoning_content", "reasoning", "thinking")
"""A message's thoughts under any of these names reach the template as `reasoning_content`."""


def _messages(row: Row) -> list[Message]:
    return [*row.prompt, *row.chosen, *row.rejected]


def _have(row: Row, *fields: str) -> bool:
    return any(field in message for message in _messages(row) for field in fields)


def _bare(row: Row, *fields: str) -> Row:
    """Return the row without these fields of its messages; a missing content becomes empty."""

    def bare(messages: list[Message]) -> list[Message]:
        kept = (
            {name: each for name, each in message.items() if name not in fields}
            for message in messages
        )
        return [cast(Message, {"content": "", **each}) for each in kept]

    return replace(
        row, prompt=bare(row.prompt), chosen=bare(row.chosen), rejected=bare(row.rejected)
    )


_FEATURES: tuple[tuple[str, Callable[[Row], bool], Callable[[Row], Row]], ...] = (
    ("tools", lambda row: row.tools is not None, lambda row: replace(row, tools=None)),
    ("tool_calls", lambda row: _have(row, "tool_calls"), lambda row: _bare(row, "tool_calls")),
    ("reasoning_content", lambda row: _have(row, *_REASONING), lambda row: _bare(row, *_REASONING)),
)
