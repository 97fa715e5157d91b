"""This is uvicorn with what it lacks: deadlines for what clients send, a bound on how many are
connected, and an end that tells clients what becomes of their answers.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import uvicorn

from serve.in_flight import InFlight

_HEAD_SECONDS = 10.0
"""A connection that has sent no whole request head for so long is closed."""
_MOST_CONNECTIONS = 1000
"""Of more, those are closed that ask for nothing, the oldest first."""
_GRACE_SECONDS = 4.0
"""Answers that are being given when it is interrupted have so long to end."""


class HttpServer(uvicorn.Server):
    """Serves one application until a signal comes."""

    def __init__(self, app: Any, in_flight: InFlight) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # who asks is decided by the address that is connected
            server_header=False,
            timeout_graceful_shutdown=int(_GRACE_SECONDS) + 2,
        )
        super().__init__(config)
        self._in_flight = in_flight
        self._silent_since: dict[Any, float] = {}
        """When a connection was first seen without a request, by the monotonic clock."""

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls it ten times a second."""
        if counter % 10 == 0:
            self._close_silent()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._in_flight.begin_to_end(_GRACE_SECONDS)
        await super().shutdown(sockets)

    def _close_silent(self) -> None:
        # A protocol of uvicorn has one cycle for each request, from the end of its head on.
        silent = [
            each
            for each in self.server_state.connections
            if (cycle := getattr(each, "cycle", None)) is None or cycle.response_complete
        ]
        now = time.monotonic()
        since = {each: self._silent_since.get(each, now) for each in silent}
        oldest = sorted(since, key=since.__getitem__)
        surplus = max(0, len(self.server_state.connections) - _MOST_CONNECTIONS)
        for number, each in enumerate(oldest):
            if number < surplus or now - since[each] > _HEAD_SECONDS:
                each.transport.close()  # type: ignore[union-attr]
                del since[each]
        self._silent_since = since
