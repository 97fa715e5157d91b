"""Makes response bodies in OpenAI's format: whole ones, chunks of streams, and errors."""

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
from serve.openai_bodies import (
    Body,
    BodyWithUsage,
    ChatLogprobs,
    Choice,
    ChosenTokenLogprob,
    CompletionLogprobs,
    Content,
    Delta,
    Head,
    ModelCard,
    TokenLogprob,
    Usage,
)
from serve.sampling import TokenChoice


def error_response(error: ApiError) -> JSONResponse:
    """Returns the response for an error."""
    return JSONResponse(error.body, error.status, error.headers)


class ResponseBuilder(ABC):
    """Makes the bodies of one response. Each endpoint has a subclass."""

    def __init__(self, head: Head, tokenizer: Any) -> None:
        self._head, self._tokenizer = head, tokenizer

    def whole(self, chunks: list[Chunk], usage: Usage) -> BodyWithUsage:
        """Returns a whole response, with one chunk for each choice.

        Without chunks it is the event with the usage at the end of a stream.
        """
        choices = [self._choice(index, chunk) for index, chunk in enumerate(chunks)]
        return {**self._head, "choices": choices, "usage": usage}

    def first_chunks(self, choices: int) -> list[Body]:
        """Returns the first events of a stream."""
        return []

    def chunk(self, index: int, chunk: Chunk) -> Body:
        """Returns the event for a chunk of the choice with this index."""
        return {**self._head, "choices": [self._choice(index, chunk)]}

    def _choice(self, index: int, chunk: Chunk) -> Choice:
        has_logprobs = chunk.tokens and chunk.tokens[0].logprob is not None
        return {
            "index": index,
            **self._content(chunk),
            "logprobs": self._logprobs(index, chunk.tokens) if has_logprobs else None,
            "finish_reason": chunk.finish_reason,
        }

    @abstractmethod
    def _content(self, chunk: Chunk) -> Content: ...

    @abstractmethod
    def _logprobs(
        self, index: int, tokens: list[TokenChoice]
    ) -> ChatLogprobs | CompletionLogprobs: ...


class ChatResponseBuilder(ResponseBuilder):
    """Makes the responses of /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Any, is_streamed: bool) -> None:
        kind = "chat.completion.chunk" if is_streamed else "chat.completion"
        created = int(time.time())
        head: Head = {"id": _new_id("chatcmpl"), "created": created, "model": model, "object": kind}
        super().__init__(head, tokenizer)
        self._is_streamed = is_streamed

    def first_chunks(self, choices: int) -> list[Body]:
        """Returns one event for each choice, with the role."""
        delta: Delta = {"role": "assistant", "content": ""}
        firsts: list[Choice] = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(choices)
        ]
        return [{**self._head, "choices": [first]} for first in firsts]

    def _content(self, chunk: Chunk) -> Content:
        if self._is_streamed:
            return {"delta": {"content": chunk.text} if chunk.text else {}}
        return {"message": {"role": "assistant", "content": chunk.text, "refusal": None}}

    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> ChatLogprobs:
        content: list[ChosenTokenLogprob] = [
            {
                **self._token(choice.id, choice.logprob),
                "top_logprobs": [self._token(*other) for other in choice.alternatives],
            }
            for choice in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> TokenLogprob:
        text = self._tokenizer.decode([token])
        # A token that is only a part of a character has no text, and so no bytes.
        content = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": content}


class CompletionResponseBuilder(ResponseBuilder):
    """Makes the responses of /v1/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        head: Head = {
            "id": _new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        super().__init__(head, tokenizer)
        self._lengths: Counter[int] = Counter()
        """The characters of each choice that were sent, for `text_offset`."""

    def _content(self, chunk: Chunk) -> Content:
        return {"text": chunk.text}

    def _logprobs(self, index: int, tokens: list[TokenChoice]) -> CompletionLogprobs:
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


def model_card(name: str, created: int) -> ModelCard:
    """Returns a model's entry in the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "dpo-tune"}


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
