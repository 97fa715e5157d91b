"""The messages of a chat as requests bring them: text, whole or in parts.

It holds too what all bodies of requests have in common: a field that says nothing is taken, and
one that is not known is refused by its name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class RequestModel(BaseModel):
    """A body of a request, or a part of one. Clients send fields that change nothing."""

    model_config = ConfigDict(extra="forbid")
    ignored: ClassVar[frozenset[str]] = frozenset()
    """These fields are taken with any value, because none changes an answer."""
    neutral: ClassVar[dict[str, list[object]]] = {}
    """These fields are taken with values that ask for what is done anyway."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if name in cls.model_fields
            or not (value is None or name in cls.ignored or cls._is_neutral(name, value))
        }

    @classmethod
    def _is_neutral(cls, name: str, value: object) -> bool:
        # To Python 0 is equal to False, and 1 to True.
        return any(type(value) is type(one) and value == one for one in cls.neutral.get(name, []))


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class Message(RequestModel):
    """A message. An answer may come back as OpenAI's client writes it out."""

    # Chat templates know no names, and annotations are of web searches.
    ignored: ClassVar[frozenset[str]] = frozenset({"name", "annotations"})
    neutral: ClassVar[dict[str, list[object]]] = {"tool_calls": [[]]}
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"parts of the type {kind} are not supported; send text parts")
        return content

    def for_template(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}
