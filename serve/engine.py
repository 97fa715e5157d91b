"""This is what the HTTP application and the engine that generates answers for it pass each other.

It knows token ids, and it knows nothing of HTTP.
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
    """At the end it is `stop` or `length`, or `error` if the step failed."""

    def append(self, later: Chunk) -> None:
        self.text += later.text
        self.tokens += later.tokens
        self.finish_reason = later.finish_reason


@dataclass(eq=False)
class GenerationRequest:
    """One answer that waits to be generated or is being generated.

    The engine calls `send` from its own thread.
    """

    prompt_ids: list[int]
    sampling: SamplingParams
    send: Callable[[Chunk], None]
    adapter: str | None = None
    """The adapter that generates it. None stands for the base model."""
    model: str = ""
    """The name by which it was asked for. Two names may stand for the same model."""
    end_token_id: int | None = None
    """This token ends it, as do those of the engine. An adapter may be trained with another one."""
    is_streamed: bool = True
    """Whether each token is sent as it comes. To send all at the end is far less work."""
    deadline: float = float("inf")
    """At this time of the monotonic clock the answer ends with `length`."""
    is_cancelled: bool = False
    """Whoever listens no longer sets it. The engine then stops at the next token."""
    output_ids: list[int] = field(default_factory=list)
    created_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    """When the first token was generated, on the monotonic clock."""


class EngineMonitor:
    """An engine reports to it what it does, from the engine's thread. This one does nothing."""

    def on_step(self, batch_size: int, waiting: int) -> None:
        """One step has generated a token for each request of the batch, while others wait."""

    def on_end(self, request: GenerationRequest) -> None:
        """A request has ended, for whatever reason."""


class RequestQueue:
    """A bounded queue of requests. Cancelled requests take no room in it."""

    def __init__(self) -> None:
        self._requests: deque[GenerationRequest] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: GenerationRequest, capacity: int) -> None:
        """Raises QueueFull if the queue holds `capacity` requests or is closed."""
        with self._changed:
            if len(self._requests) >= capacity:
                self._requests = deque(one for one in self._requests if not one.is_cancelled)
            if len(self._requests) >= capacity or self._is_closed:
                raise QueueFull
            self._requests.append(request)
            self._changed.notify()

    def get(self, block: bool) -> GenerationRequest | None:
        """Returns the next request, or None if there is none.

        With `block` it waits for one, and returns None only when the queue is closed and empty.
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
        """From now on the queue takes no more requests. Those that it holds stay."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def drain(self) -> list[GenerationRequest]:
        """Closes the queue, and takes out and returns all that it held."""
        self.close()
        with self._changed:
            requests, self._requests = list(self._requests), deque()
        return requests
