"""Defines every error of the server.

    ServeError
      ModelError (ValueError)
      UnsupportedAttention
      QueueFull
      ApiError

In brackets is the built-in error from which a class also derives. The server imports nothing of a
search or of training, so its tree has its own root.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from serve.openai_bodies import ErrorBody


class ServeError(Exception):
    """The root of the tree."""


class ModelError(ServeError, ValueError):
    """A model can't be served. The message is one line: what was given, and what to type."""


class UnsupportedAttention(ServeError):
    """A model's attention is not supported. The message is a clause that says why."""


class QueueFull(ServeError):
    """The queue has no free place for another request."""


class ApiError(ServeError):
    """An error response in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(status, message, kind, param, code)
        self.status = status
        self.headers: Mapping[str, str] | None = None
        self.body: ErrorBody = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def with_headers(self, headers: Mapping[str, str] | None) -> Self:
        """Sets headers of the response, and returns this error."""
        self.headers = headers
        return self

    def __str__(self) -> str:
        return str(self.body["error"]["message"])
