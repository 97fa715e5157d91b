"""One answer on its way from the engine's thread to the event loop of a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from serve.engine import Answer, Chunk
from serve.models import Served
from serve.sampling import Sampling
from serve.schema import ApiError


class Pending:
    """Handed to an engine as `answer`; its chunks come out here."""

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        model: Served,
        seconds: float,
        in_parts: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._deadline = time.monotonic() + seconds
        self.prompt_tokens = len(prompt)

        def send(chunk: Chunk) -> None:
            loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

        self.answer = Answer(prompt, sampling, send, model.adapter, in_parts, self._deadline)

    @property
    def completion_tokens(self) -> int:
        return len(self.answer.ids)

    async def first(self) -> Chunk:
        """The first chunk. Raises ApiError 504 if it does not come in time."""
        try:
            chunk = await asyncio.wait_for(
                self._chunks.get(), max(0.0, self._deadline - time.monotonic())
            )
        except TimeoutError:
            if not self.answer.ids:
                raise ApiError(504, "no answer in time", "timeout_error") from None
            chunk = await self._chunks.get()  # the engine ends it at the next token
        if chunk.finish_reason == "error":
            raise ApiError(500, f"the model failed: {chunk.text}", "server_error")
        return chunk

    async def rest(self, first: Chunk) -> AsyncIterator[Chunk]:
        """That chunk and those after it."""
        chunk = first
        yield chunk
        while chunk.finish_reason is None:
            chunk = await self._chunks.get()
            yield chunk

    async def whole(self) -> Chunk:
        """All of it as one chunk. Raises ApiError."""
        whole = Chunk()
        async for chunk in self.rest(await self.first()):
            if chunk.finish_reason == "error":
                raise ApiError(500, f"the model failed: {chunk.text}", "server_error")
            whole.text += chunk.text
            whole.tokens += chunk.tokens
            whole.finish_reason = chunk.finish_reason
        return whole

    def drop(self) -> None:
        """Says that nobody listens any more."""
        self.answer.is_dropped = True
