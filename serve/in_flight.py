"""This brings the chunks of an answer from the engine's thread to the event loop of its request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import Request

from serve.engine import Chunk, GenerationRequest
from serve.models import ServedModel
from serve.openai_responses import ApiError
from serve.sampling import SamplingParams

T = TypeVar("T")


class InFlightAnswer:
    """One answer. Its `request` is for an engine, and what the engine sends comes out here."""

    def __init__(
        self,
        prompt_ids: list[int],
        sampling: SamplingParams,
        model: ServedModel,
        seconds: float,
        is_streamed: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._deadline = time.monotonic() + seconds

        def send(chunk: Chunk) -> None:
            loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

        self.request = GenerationRequest(
            prompt_ids,
            sampling,
            send,
            model.adapter,
            model.tokenizer.eos_token_id,
            is_streamed,
            self._deadline,
        )

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yields each chunk as it comes.

        Raises ApiError 504 if nothing comes in time, and 500 if the model fails.
        """
        chunk = await self._first()
        while True:
            if chunk.finish_reason == "error":
                raise ApiError(500, f"the model failed: {chunk.text}", "server_error")
            yield chunk
            if chunk.finish_reason is not None:
                return
            chunk = await self._chunks.get()

    async def whole(self) -> Chunk:
        """Returns the whole answer as one chunk. Raises ApiError as `chunks` does."""
        whole = Chunk()
        async for chunk in self.chunks():
            whole.append(chunk)
        return whole

    def cancel(self) -> None:
        """Tells the engine that nobody listens any more."""
        self.request.is_cancelled = True

    async def _first(self) -> Chunk:
        try:
            return await asyncio.wait_for(
                self._chunks.get(), max(0.0, self._deadline - time.monotonic())
            )
        except TimeoutError:
            if not self.request.output_ids:
                raise ApiError(504, "no answer in time", "timeout_error") from None
            return await self._chunks.get()  # the engine ends it at the next token


class MergedAnswers:
    """The answers to one HTTP request, whose chunks are mixed as they come."""

    def __init__(self, answers: list[InFlightAnswer]) -> None:
        self._arrived: asyncio.Queue[tuple[int, Chunk | ApiError]] = asyncio.Queue()
        self._forwarders = [
            asyncio.ensure_future(self._forward(index, answer))
            for index, answer in enumerate(answers)
        ]
        self._unfinished = len(answers)

    async def next(self) -> dict[int, Chunk]:
        """Waits for a chunk and returns all that have come, by the index of their answer.

        At the end it returns nothing. Raises ApiError.
        """
        ready: dict[int, Chunk] = {}
        while self._unfinished and (not ready or not self._arrived.empty()):
            index, chunk = await self._arrived.get()
            if isinstance(chunk, ApiError):
                raise chunk
            ready.setdefault(index, Chunk()).append(chunk)
            self._unfinished -= chunk.finish_reason is not None
        return ready

    def close(self) -> None:
        for forwarder in self._forwarders:
            forwarder.cancel()

    async def _forward(self, index: int, answer: InFlightAnswer) -> None:
        try:
            async for chunk in answer.chunks():
                self._arrived.put_nowait((index, chunk))
        except ApiError as error:
            self._arrived.put_nowait((index, error))


def cancel_all(answers: list[InFlightAnswer]) -> None:
    for answer in answers:
        answer.cancel()


async def unless_disconnected(
    request: Request, answers: list[InFlightAnswer], work: Awaitable[T]
) -> T:
    """Returns the result of the work. If the client disconnects before, the answers are cancelled.

    Raises what the work raises, and ApiError 499 if the client has gone.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client has gone")
    except BaseException:
        cancel_all(answers)
        raise
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
