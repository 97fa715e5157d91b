"""What a server counts: requests, tokens, seconds to the first token, batches, the queue."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.engine import Answer
from serve.guard import Message, Receive, Send
from serve.instruments import Instruments, Record
from serve.models import Served, engines
from serve.openai_requests import ApiError

_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_ANSWERS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]


def mount(app: FastAPI, models: dict[str, Served], instruments: Instruments) -> None:
    """Counts what `app` and the engines of its models do, and adds `/metrics`."""
    requests = instruments.counter("requests", "Requests, by path and status", ("path", "status"))
    app.add_middleware(_Counting, requests=requests)
    meters = _Meters(instruments)
    for engine in engines(models):
        names = {model.adapter: model.name for model in models.values() if model.engine is engine}
        engine.watch = _EngineMeters(meters, names)

    @app.get("/metrics")
    async def metrics() -> Response:
        try:
            text = await asyncio.to_thread(instruments.read)
        except OSError as error:
            raise ApiError(
                503, f"a node's metrics can't be read: {error}", "server_error"
            ) from None
        return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Meters:
    """Of all engines of a process."""

    def __init__(self, instruments: Instruments) -> None:
        self.tokens = instruments.counter(
            "tokens", "Tokens of prompts and answers", ("model", "kind")
        )
        self.first = instruments.spread(
            "first_token_seconds", "From the request to the first token of its answer",
            ("model",), _SECONDS,
        )  # fmt: skip
        self.batch = instruments.spread("batch_size", "Answers in a step", ("model",), _ANSWERS)
        self.waiting = instruments.spread(
            "waiting", "Answers that wait for a place, at each step", ("model",), [0.5, *_ANSWERS]
        )


class _EngineMeters:
    """The Watch of one engine."""

    def __init__(self, meters: _Meters, names: dict[str | None, str]) -> None:
        self._meters, self._names = meters, names
        self._first = next(iter(names.values()))
        """Models that share weights share the batch: it is told under the first one's name."""

    def stepped(self, answers: int, waiting: int) -> None:
        self._meters.batch(answers, model=self._first)
        self._meters.waiting(waiting, model=self._first)

    def ended(self, answer: Answer) -> None:
        model = self._names[answer.model]
        self._meters.tokens(len(answer.prompt), model=model, kind="prompt")
        if answer.first_at is not None:
            self._meters.tokens(len(answer.ids), model=model, kind="answer")
            self._meters.first(answer.first_at - answer.asked_at, model=model)


class _Counting:
    """ASGI middleware: counts every request, also those that the guard refuses."""

    def __init__(self, app: Any, requests: Record) -> None:
        self._app, self._requests = app, requests

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Anyone can invent paths: what has no route of ours is counted together.
                path = getattr(scope.get("route"), "path", "other")
                self._requests(1, path=path, status=str(message["status"]))
            await send(message)

        await self._app(scope, receive, counted)
