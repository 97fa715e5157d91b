"""Defines the messages of a chat request, whose text may be whole or in parts.

It also defines what all request bodies share: a field that changes nothing is accepted, and an
unknown field is refused by its name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class RequestModel(BaseModel):
    """A request body, or an object in it. Clients also send fields that change nothing."""

    model_config = ConfigDict(extra="forbid")
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that are accepted with any value, because they never change an answer."""
    neutral: ClassVar[dict[str, list[object]]] = {}
    """Fields that are accepted with values which request the usual behaviour."""

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
        # In Python 0 equals False and 1 equals True, so the types are compared too.
        return any(type(value) is type(one) and value == one for one in cls.neutral.get(name, []))


class TextPart(RequestModel):
    """A part of a message's text."""

    type: Literal["text"]
    text: str


class Message(RequestModel):
    """A message of a chat. Earlier answers may have the fields that OpenAI's client adds."""

    # Chat templates use no names, and annotations belong to web searches.
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
        """Returns the message for a chat template."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}
