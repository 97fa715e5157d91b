"""One answer on its way from the engine's thread to the event loop of a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from serve.engine import Answer, Chunk
from serve.models import Served
from serve.openai_requests import ApiError
from serve.sampling import Sampling


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

        def send(chunk: Chunk) -> None:
            loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

        end = model.tokenizer.eos_token_id
        self.answer = Answer(prompt, sampling, send, model.adapter, end, in_parts, self._deadline)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """All of it, as it comes. Raises ApiError: 504 if nothing comes in time, 500."""
        chunk = await self._first()
        while True:
            if chunk.finish_reason == "error":
                raise ApiError(500, f"the model failed: {chunk.text}", "server_error")
            yield chunk
            if chunk.finish_reason is not None:
                return
            chunk = await self._chunks.get()

    async def whole(self) -> Chunk:
        """All of it as one chunk. Raises ApiError."""
        whole = Chunk()
        async for chunk in self.chunks():
            whole.add(chunk)
        return whole

    def drop(self) -> None:
        """Says that nobody listens any more."""
        self.answer.is_dropped = True

    async def _first(self) -> Chunk:
        try:
            return await asyncio.wait_for(
                self._chunks.get(), max(0.0, self._deadline - time.monotonic())
            )
        except TimeoutError:
            if not self.answer.ids:
                raise ApiError(504, "no answer in time", "timeout_error") from None
            return await self._chunks.get()  # the engine ends it at the next token


class Merged:
    """The answers to one request, each chunk as it comes."""

    def __init__(self, pending: list[Pending]) -> None:
        self._come: asyncio.Queue[tuple[int, Chunk | ApiError]] = asyncio.Queue()
        self._pumps = [
            asyncio.ensure_future(self._pump(index, one)) for index, one in enumerate(pending)
        ]
        self._open = len(pending)

    async def next(self) -> dict[int, Chunk]:
        """What has come of each answer by its index, at least one chunk; nothing at the end.

        Raises ApiError.
        """
        ready: dict[int, Chunk] = {}
        while self._open and (not ready or not self._come.empty()):
            index, chunk = await self._come.get()
            if isinstance(chunk, ApiError):
                raise chunk
            ready.setdefault(index, Chunk()).add(chunk)
            self._open -= chunk.finish_reason is not None
        return ready

    def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, index: int, pending: Pending) -> None:
        try:
            async for chunk in pending.chunks():
                self._come.put_nowait((index, chunk))
        except ApiError as error:
            self._come.put_nowait((index, error))
