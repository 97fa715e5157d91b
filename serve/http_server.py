"""Extends uvicorn: deadlines for clients that send slowly, a limit of connections, and a shutdown
that refuses waiting requests with 503 and lets running answers finish for some seconds.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import uvicorn

from serve.in_flight import InFlight

_HEAD_SECONDS = 10.0
"""A connection without a complete request head is closed after this time."""
_MOST_CONNECTIONS = 1000
"""If there are more connections, idle ones are closed, the oldest first."""
_GRACE_SECONDS = 4.0
"""How long running answers may continue after an interrupt."""


class HttpServer(uvicorn.Server):
    """Serves one application until a signal comes."""

    def __init__(self, app: Any, in_flight: InFlight) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # the guard must see the address that is really connected
            server_header=False,
            timeout_graceful_shutdown=int(_GRACE_SECONDS) + 2,
        )
        super().__init__(config)
        self._in_flight = in_flight
        self._silent_since: dict[tuple[Any, Any], float] = {}
        """When a connection was first seen idle after its last request, on the monotonic clock. The
        key is the connection and that request (uvicorn's `cycle`)."""

    async def on_tick(self, counter: int) -> bool:
        """Closes idle connections once a second. uvicorn calls it ten times a second."""
        if counter % 10 == 0:
            self._close_silent()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers waiting requests with 503, and ends the server."""
        self._in_flight.begin_to_end(_GRACE_SECONDS)
        await super().shutdown(sockets)

    def _close_silent(self) -> None:
        # uvicorn makes a `cycle` for each request of a connection, once its head has arrived.
        silent = [
            each
            for each in self.server_state.connections
            if (cycle := getattr(each, "cycle", None)) is None or cycle.response_complete
        ]
        now = time.monotonic()
        # If a request came and ended since the last look, the cycle is another one, so the time
        # starts anew.
        since = {
            each: self._silent_since.get((each, cycle), now)
            for each in silent
            for cycle in [getattr(each, "cycle", None)]
        }
        oldest = sorted(since, key=since.__getitem__)
        surplus = max(0, len(self.server_state.connections) - _MOST_CONNECTIONS)
        for number, each in enumerate(oldest):
            if number < surplus or now - since[each] > _HEAD_SECONDS:
                each.transport.close()  # type: ignore[union-attr]
                del since[each]
        self._silent_since = {
            (each, getattr(each, "cycle", None)): began for each, began in since.items()
        }
