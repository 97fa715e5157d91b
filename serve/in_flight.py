"""Passes the chunks of answers from the engine's thread to the event loop of their request."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator
from functools import partial

from starlette.requests import Request

from serve.engine import Chunk, GenerationRequest
from serve.errors import ApiError, QueueFull
from serve.models import ServedModel
from serve.sampling_params import SamplingParams


class InFlight:
    """All answers that wait or are being generated. It also ends them with the server."""

    def __init__(self) -> None:
        self._answers: weakref.WeakSet[InFlightAnswers] = weakref.WeakSet()
        self._is_ending = False

    def submit(self, answers: InFlightAnswers) -> None:
        """Queues answers. Raises ApiError 503 if the queue is full or the server ends."""
        if self._is_ending:
            raise _ending()
        self._answers.add(answers)
        answers.submit()

    def begin_to_end(self, grace_seconds: float) -> None:
        """Refuses further requests, and ends waiting ones with 503.

        Answers that are being generated get `grace_seconds` to finish.
        """
        self._is_ending = True
        for answers in list(self._answers):
            if not any(request.output_ids for request in answers.requests):
                answers.end()
        asyncio.get_running_loop().call_later(grace_seconds, self._end_all)

    def _end_all(self) -> None:
        for answers in list(self._answers):
            answers.end()


def _ending() -> ApiError:
    refusal = ApiError(503, "the server is shutting down; try again", "overloaded_error")
    return refusal.with_headers({"Retry-After": "5"})


class InFlightAnswers:
    """The answers to one HTTP request. Their chunks arrive in any order."""

    def __init__(
        self,
        model: ServedModel,
        prompts: list[tuple[list[int], SamplingParams]],
        seconds: float,
        is_streamed: bool,
    ) -> None:
        """Makes a request of the engine for each prompt's token ids and settings."""
        self._loop = asyncio.get_running_loop()
        self._engine = model.engine
        self._arrived: asyncio.Queue[tuple[int, Chunk] | ApiError] = asyncio.Queue()
        """Chunks with the index of their answer, or an error that ends all answers."""
        self._deadline = time.monotonic() + seconds
        self._unfinished = len(prompts)
        self.requests = [
            GenerationRequest(
                prompt_ids,
                sampling,
                partial(self._send, index),
                model.adapter,
                model.name,
                model.tokenizer.eos_token_id,
                is_streamed,
                self._deadline,
            )
            for index, (prompt_ids, sampling) in enumerate(prompts)
        ]

    def submit(self) -> None:
        """Queues all answers, or none if one does not fit. Raises ApiError 503."""
        try:
            for request in self.requests:
                self._engine.submit(request)
        except QueueFull:
            self.cancel()
            message = "the server is busy and its queue is full; try again in a second"
            refusal = ApiError(503, message, "overloaded_error")
            raise refusal.with_headers({"Retry-After": "1"}) from None

    async def next(self) -> dict[int, Chunk]:
        """Waits for a chunk, and returns all arrived chunks by the index of their answer.

        Returns nothing at the end. Raises ApiError 504 if an answer does not begin in time, 500 if
        the model fails, 503 if the server ends, and 499 if the client disconnects.
        """
        ready: dict[int, Chunk] = {}
        while self._unfinished and (not ready or not self._arrived.empty()):
            arrived = await self._next_arrived()
            if isinstance(arrived, ApiError):
                raise arrived
            index, chunk = arrived
            if chunk.finish_reason == "error":
                raise ApiError(500, f"the model failed: {chunk.text}", "server_error")
            ready.setdefault(index, Chunk()).append(chunk)
            self._unfinished -= chunk.finish_reason is not None
        return ready

    async def whole(self) -> list[Chunk]:
        """Returns each answer as one chunk. Raises ApiError as `next` does."""
        answers = [Chunk() for _ in self.requests]
        while ready := await self.next():
            for index, chunk in ready.items():
                answers[index].append(chunk)
        return answers

    @contextlib.asynccontextmanager
    async def unless_disconnected(self, request: Request) -> AsyncIterator[None]:
        """Makes `next` raise if the client disconnects. Errors in this context cancel answers."""
        watcher = asyncio.create_task(self._watch(request))
        try:
            yield
        except BaseException:
            self.cancel()
            raise
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    def cancel(self) -> None:
        """Tells the engine that nobody waits for the answers any more."""
        for request in self.requests:
            request.is_cancelled = True

    def end(self) -> None:
        """Ends the answers with 503, because the server ends."""
        self.cancel()
        self._arrived.put_nowait(_ending())

    def _send(self, index: int, chunk: Chunk) -> None:
        """Passes a chunk to the event loop; the engine's thread calls it."""
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, (index, chunk))

    async def _next_arrived(self) -> tuple[int, Chunk] | ApiError:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await self._arrived.get()
        except TimeoutError:
            if not all(request.output_ids for request in self.requests):
                raise ApiError(504, "no answer within the time limit", "timeout_error") from None
            return await self._arrived.get()  # the engine ends the answers at the next token

    async def _watch(self, request: Request) -> None:
        # If `receive` fails, the client is lost too.
        with contextlib.suppress(Exception):
            while (await request.receive())["type"] != "http.disconnect":
                pass
        self._arrived.put_nowait(ApiError(499, "the client has disconnected"))
