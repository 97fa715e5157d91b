"""These are the bodies of OpenAI's responses: whole, in the chunks of a stream, and of errors."""

from __future__ import annotations

import itertools
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

from starlette.responses import JSONResponse

from serve.engine import Chunk
from serve.errors import ApiError
from serve.sampling import TokenChoice


def error_response(error: ApiError) -> JSONResponse:
    """Returns the response that an error is."""
    return JSONResponse(error.body, error.status, error.headers)


class ResponseBuilder(ABC):
    """Makes the bodies of one response. Each endpoint has a subclass for what differs."""

    def __init__(self, head: dict[str, Any], tokenizer: Any) -> None:
        """Every body begins with `head`."""
        self._head, self._tokenizer = head, tokenizer

    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        """Returns the response to a request without `stream`. Each choice has a chunk.

        Without chunks it is what gives the usage at the end of a stream.
        """
        choices = [self._choice(index, chunk) for index, chunk in enumerate(chunks)]
        return {**self._head, "choices": choices, "usage": usage}

    def first_chunks(self, choices: int) -> list[dict[str, Any]]:
        """Returns what a stream begins with."""
        return []

    def chunk(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """Returns what a stream says of a chunk of the choice with that index."""
        return {**self._head, "choices": [self._choice(index, chunk)]}

    def _choice(self, index: int, chunk: Chunk) -> dict[str, Any]:
        has_logprobs = chunk.tokens and chunk.tokens[0].logprob is not None
        return {
            "index": index,
            **self._content(chunk),
            "logprobs": self._logprobs(index, chunk.tokens) if has_logprobs else None,
            "finish_reason": chunk.finish_reason,
        }

    @abstractmethod
    def _content(self, chunk: Chunk) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> dict[str, Any]: ...


class ChatResponseBuilder(ResponseBuilder):
    """Makes the responses of /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Any, is_streamed: bool) -> None:
        kind = "chat.completion.chunk" if is_streamed else "chat.completion"
        created = int(time.time())
        head = {"id": _new_id("chatcmpl"), "created": created, "model": model, "object": kind}
        super().__init__(head, tokenizer)
        self._is_streamed = is_streamed

    def first_chunks(self, choices: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        choice = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [{**self._head, "choices": [{"index": i, **choice}]} for i in range(choices)]

    def _content(self, chunk: Chunk) -> dict[str, Any]:
        if self._is_streamed:
            return {"delta": {"content": chunk.text} if chunk.text else {}}
        return {"message": {"role": "assistant", "content": chunk.text, "refusal": None}}

    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> dict[str, Any]:
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


class CompletionResponseBuilder(ResponseBuilder):
    """Makes the responses of /v1/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        head = {
            "id": _new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        super().__init__(head, tokenizer)
        self._lengths: Counter[int] = Counter()
        """How many characters of each choice were sent, for `text_offset`."""

    def _content(self, chunk: Chunk) -> dict[str, Any]:
        return {"text": chunk.text}

    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> dict[str, Any]:
        decode = self._tokenizer.decode
        texts = [decode([choice.id]) for choice in tokens]
        *offsets, self._lengths[index] = itertools.accumulate(
            map(len, texts), initial=self._lengths[index]
        )
        return {
            "tokens": texts,
            "token_logprobs": [choice.logprob for choice in tokens],
            "top_logprobs": [
                {decode([token]): logprob for token, logprob in choice.alternatives}
                for choice in tokens
            ],
            "text_offset": offsets,
        }


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "dpo-tune"}


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
