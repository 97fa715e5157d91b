"""The shapes of OpenAI's answers: whole, and in the parts of a stream."""

from __future__ import annotations

from typing import Any, Protocol

from serve.engine import Chunk
from serve.openai_requests import new_id, now
from serve.sampling import TokenChoice


class Form(Protocol):
    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        """The answer to a request without `stream`; a chunk for each choice."""
        ...

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """What a stream begins with."""
        ...

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]: ...

    def closing(self, usage: dict[str, int]) -> dict[str, Any]:
        """What tells the usage at a stream's end."""
        ...


class ChatForm:
    """/v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        self._head = {"id": new_id("chatcmpl"), "created": now(), "model": model}
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

    def opening(self, choices: int) -> list[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        return [self._part(index, role, None, None) for index in range(choices)]

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        delta = {"content": chunk.text} if chunk.text else {}
        return self._part(index, delta, self._logprobs(chunk.tokens), chunk.finish_reason)

    def closing(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _part(self, index: int, delta: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
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
        # Of a part of a character there is no text to take them from.
        told = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": told}


class CompletionForm:
    """/v1/completions."""

    def __init__(self, model: str, tokenizer: Any) -> None:
        self._head = {
            "id": new_id("cmpl"), "object": "text_completion", "created": now(), "model": model
        }  # fmt: skip
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}
        """How many characters of each choice were told, for `text_offset`."""

    def whole(self, chunks: list[Chunk], usage: dict[str, int]) -> dict[str, Any]:
        choices = [self._choice(index, chunk) for index, chunk in enumerate(chunks)]
        return {**self._head, "choices": choices, "usage": usage}

    def opening(self, choices: int) -> list[dict[str, Any]]:
        return []

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(index, chunk)]}

    def closing(self, usage: dict[str, int]) -> dict[str, Any]:
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
