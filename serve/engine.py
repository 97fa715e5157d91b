"""Defines what the HTTP application and the engine exchange: requests, chunks of answers, a queue.

It knows token ids, but nothing of HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.errors import QueueFull
from serve.sampling import TokenChoice
from serve.sampling_params import SamplingParams


@dataclass
class Chunk:
    """What one step of the engine adds to an answer."""

    text: str = ""
    tokens: list[TokenChoice] = field(default_factory=list)
    finish_reason: str | None = None
    """At the end `stop` or `length`, or `error` if a step failed; None before the end."""

    def append(self, later: Chunk) -> None:
        """Adds a later chunk of the same answer."""
        self.text += later.text
        self.tokens += later.tokens
        self.finish_reason = later.finish_reason


@dataclass(eq=False)
class GenerationRequest:
    """A request for one answer, which waits or is being generated.

    The engine calls `send` in its own thread.
    """

    prompt_ids: list[int]
    sampling: SamplingParams
    send: Callable[[Chunk], None]
    adapter: str | None = None
    """The adapter that generates the answer. None is the base model."""
    model: str = ""
    """The model's name in the request. A model may have two names."""
    end_token_id: int | None = None
    """A token that ends the answer, beside those of the engine. An adapter may have its own."""
    is_streamed: bool = True
    """Whether each token is sent at once. Sending all tokens at the end is far less work."""
    deadline: float = float("inf")
    """The time of the monotonic clock at which the answer ends with `length`."""
    is_cancelled: bool = False
    """Set when nobody waits for the answer any more. The engine stops at the next token."""
    output_ids: list[int] = field(default_factory=list)
    created_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    """The time of the monotonic clock at which the first token was generated."""


class EngineMonitor:
    """Receives an engine's reports, in the engine's thread. This base class ignores them."""

    def on_step(self, batch_size: int, waiting: int) -> None:
        """Called after a step generated one token for each of `batch_size` requests."""

    def on_end(self, request: GenerationRequest) -> None:
        """Called when a request has ended for any reason."""


class RequestQueue:
    """A bounded queue of requests. Cancelled requests don't count."""

    def __init__(self) -> None:
        self._requests: deque[GenerationRequest] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: GenerationRequest, capacity: int) -> None:
        """Adds a request. Raises QueueFull if the queue has `capacity` requests or is closed."""
        with self._changed:
            if len(self._requests) >= capacity:
                self._requests = deque(each for each in self._requests if not each.is_cancelled)
            if len(self._requests) >= capacity or self._is_closed:
                raise QueueFull
            self._requests.append(request)
            self._changed.notify()

    def get(self, block: bool) -> GenerationRequest | None:
        """Returns the next request, or None if the queue is empty.

        With `block` it waits for a request, and returns None only if the queue is closed and empty.
        """
        with self._changed:
            while True:
                while self._requests:
                    request = self._requests.popleft()
                    if not request.is_cancelled:
                        return request
                if self._is_closed or not block:
                    return None
                self._changed.wait()

    def close(self) -> None:
        """Refuses further requests. Those in the queue stay."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def drain(self) -> list[GenerationRequest]:
        """Closes the queue, removes all its requests and returns them."""
        self.close()
        with self._changed:
            requests, self._requests = list(self._requests), deque()
        return requests
