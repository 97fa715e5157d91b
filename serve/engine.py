"""What stands between HTTP and a model: answers that are asked for, and who makes them.

Knows token ids, not HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from serve.sampling import Sampling, TokenChoice


class Full(Exception):
    """No room in the queue."""


@dataclass
class Chunk:
    """What one step adds to an answer."""

    text: str = ""
    tokens: list[TokenChoice] = field(default_factory=list)
    finish_reason: str | None = None
    """`stop` or `length` at the end; `error` if the step failed."""

    def add(self, later: Chunk) -> None:
        self.text += later.text
        self.tokens += later.tokens
        self.finish_reason = later.finish_reason


@dataclass(eq=False)
class Answer:
    """One answer that is asked for or being made. `send` is called from the engine's thread."""

    prompt: list[int]
    sampling: Sampling
    send: Callable[[Chunk], None]
    model: str | None = None
    """The adapter that writes it; None for the base."""
    end_token: int | None = None
    """Ends it beside the engine's own: an adapter may have been trained with another."""
    in_parts: bool = True
    """Whether each token is told as it comes, or all of them at the end: far less work."""
    deadline: float = float("inf")
    """On the monotonic clock; the answer ends there with `length`."""
    is_dropped: bool = False
    """Set by whoever no longer listens; the engine lets go of it at the next token."""
    ids: list[int] = field(default_factory=list)
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    """When its first token was made, on the monotonic clock."""


class Watch(Protocol):
    """Is told what an engine does, from the engine's thread."""

    def stepped(self, answers: int, waiting: int) -> None:
        """One step made a token for so many answers, while so many wait."""
        ...

    def ended(self, answer: Answer) -> None: ...


class Unwatched:
    """A Watch that looks away."""

    def stepped(self, answers: int, waiting: int) -> None:
        pass

    def ended(self, answer: Answer) -> None:
        pass


class Engine(Protocol):
    """Makes answers, many at once."""

    watch: Watch
    slots: int
    """Answers made at once; `most_waiting` more may be queued."""
    most_waiting: int
    context: int
    """Tokens of a prompt and its answer."""

    @property
    def is_alive(self) -> bool: ...

    def submit(self, answer: Answer) -> None:
        """Queues an answer. Raises Full."""
        ...

    def close(self) -> None:
        """Ends after the answers that were asked for."""
        ...


class Waiting:
    """A bounded queue of answers, where those that nobody listens to any more take no room."""

    def __init__(self) -> None:
        self._answers: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._is_ended = False

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, answer: Answer, most: int) -> None:
        """Raises Full if so many are there, or it has ended."""
        with self._changed:
            if len(self._answers) >= most:
                self._answers = deque(one for one in self._answers if not one.is_dropped)
            if len(self._answers) >= most or self._is_ended:
                raise Full
            self._answers.append(answer)
            self._changed.notify()

    def get(self, block: bool) -> Answer | None:
        """The next one; None if there is none, with `block` only once it has ended."""
        with self._changed:
            while True:
                while self._answers:
                    answer = self._answers.popleft()
                    if not answer.is_dropped:
                        return answer
                if self._is_ended or not block:
                    return None
                self._changed.wait()

    def end(self) -> None:
        """Takes no more; what is there stays."""
        with self._changed:
            self._is_ended = True
            self._changed.notify()

    def close(self) -> list[Answer]:
        """Ends, and gives what was there."""
        self.end()
        with self._changed:
            left, self._answers = list(self._answers), deque()
        return left
