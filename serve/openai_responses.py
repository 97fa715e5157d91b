"""These are the bodies of OpenAI's responses: whole, in the chunks of a stream, and of errors."""

from __future__ import annotations

import time
import uuid
from typing import Any, Protocol

from serve.engine import Chunk
from serve.sampling import TokenChoice


class ApiError(Exception):
    """A response that is an error, in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ResponseBuilder(Protocol):
    """Makes the bodies of one response."""

    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        """Returns the response to a request without `stream`. Each choice has a chunk."""
        ...

    def first_chunks(self, choices: int) -> list[dict[str, Any]]:
        """Returns what a stream begins with."""
        ...

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """Returns what a stream says of a chunk of the choice with that index."""
        ...

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Returns what gives the usage at the end of a stream."""
        ...


class ChatResponseBuilder:
    """Makes the responses of /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        self._head = {"id": _new_id("chatcmpl"), "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer

    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": chunk.text, "refusal": None},
                "logprobs": self._logprobs(chunk.tokens),
                "finish_reason": chunk.finish_reason,
            }
            for index, chunk in enumerate(chunks)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def first_chunks(self, choices: int) -> list[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        return [self._chunk(index, role, None, None) for index in range(choices)]

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any]:
        delta = {"content": chunk.text} if chunk.text else {}
        return self._chunk(index, delta, self._logprobs(chunk.tokens), chunk.finish_reason)

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: list[TokenChoice]) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None
        content = [
            {
                **self._token(choice.id, choice.logprob),
                "top_logprobs": [self._token(*other) for other in choice.alternatives],
            }
            for choice in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        # A token that is a part of a character has no text to take its bytes from.
        content = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": content}


class CompletionResponseBuilder:
    """Makes the responses of /v1/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        self._head = {
            "id": _new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}
        """How many characters of each choice were sent, for `text_offset`."""

    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        choices = [self._choice(index, chunk) for index, chunk in enumerate(chunks)]
        return {**self._head, "choices": choices, "usage": usage}

    def first_chunks(self, choices: int) -> list[dict[str, Any]]:
        return []

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(index, chunk)]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage}

    def _choice(self, index: int, chunk: Chunk) -> dict[str, Any]:
        return {
            "index": index,
            "text": chunk.text,
            "logprobs": self._logprobs(index, chunk.tokens),
            "finish_reason": chunk.finish_reason,
        }

    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None
        decode = self._tokenizer.decode
        offsets = []
        for choice in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(decode([choice.id]))
        return {
            "tokens": [decode([choice.id]) for choice in tokens],
            "token_logprobs": [choice.logprob for choice in tokens],
            "top_logprobs": [
                {decode([token]): logprob for token, logprob in choice.alternatives}
                for choice in tokens
            ],
            "text_offset": offsets,
        }


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "dpo-tune"}


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
