"""Every error that the server raises of itself.

    ServeError
      ModelError (ValueError)
      UnsupportedAttention
      QueueFull
      ApiError

In brackets is the built-in error that a class is as well. The server imports nothing of a search
or of training, so its tree has a root of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from serve.openai_bodies import ErrorBody


class ServeError(Exception):
    """The root of the tree."""


class ModelError(ServeError, ValueError):
    """What was asked for can't be served. The message is one line: what was given, what to type."""


class UnsupportedAttention(ServeError):
    """A model attends in a way that is not computed here. The message is a clause that says how."""


class QueueFull(ServeError):
    """The queue has no room for another request."""


class ApiError(ServeError):
    """A response that is an error, in OpenAI's format."""

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
        """Returns this error, which answers with these headers too."""
        self.headers = headers
        return self

    def __str__(self) -> str:
        return str(self.body["error"]["message"])
