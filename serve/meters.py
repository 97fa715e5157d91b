"""Counts requests and tokens, and measures time to the first token, batches and waiting answers."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engine import EngineMonitor, GenerationRequest
from serve.instruments import Instruments, LocalInstruments, Record
from serve.models import ServedModel, engines

_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]


def mount(app: FastAPI, models: dict[str, ServedModel], instruments: Instruments) -> None:
    """Adds the metrics of `app` and the engines of its models.

    A single process serves them at `/metrics`. With several replicas of Ray Serve that would give
    the metrics of a random replica, so Ray's own endpoints export them.
    """
    requests = instruments.counter("requests", "Requests, by path and status", ("path", "status"))
    app.add_middleware(_RequestCounter, requests=requests)
    meters = _Meters(instruments)
    for engine in engines(models):
        names = [model.name for model in models.values() if model.engine is engine]
        engine.monitor = _MeteringMonitor(meters, names[0])

    if isinstance(instruments, LocalInstruments):

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(instruments.read(), media_type=CONTENT_TYPE_LATEST)


class _Meters:
    """The instruments that all engines of a process share."""

    def __init__(self, instruments: Instruments) -> None:
        self.tokens = instruments.counter(
            "tokens", "Tokens of prompts and answers", ("model", "kind")
        )
        self.first_token = instruments.histogram(
            "first_token_seconds", "From the request to the first token of its answer",
            ("model",), _SECONDS,
        )  # fmt: skip
        self.batch_size = instruments.histogram(
            "batch_size", "Answers in a step", ("model",), _SIZES
        )
        self.waiting = instruments.histogram(
            "waiting", "Answers that wait for a slot, at each step", ("model",), [0.5, *_SIZES]
        )


class _MeteringMonitor(EngineMonitor):
    """The monitor of one engine."""

    def __init__(self, meters: _Meters, first_name: str) -> None:
        self._meters = meters
        self._first_name = first_name
        """The name for the metrics of batches. Models that share weights share a batch, so this is
        the name of the first one."""

    def on_step(self, batch_size: int, waiting: int) -> None:
        """Records a step's batch and queue."""
        self._meters.batch_size(batch_size, model=self._first_name)
        self._meters.waiting(waiting, model=self._first_name)

    def on_end(self, request: GenerationRequest) -> None:
        """Records a request's tokens and the time to its first token."""
        model = request.model
        self._meters.tokens(len(request.prompt_ids), model=model, kind="prompt")
        if request.first_token_at is not None:
            self._meters.tokens(len(request.output_ids), model=model, kind="answer")
            self._meters.first_token(request.first_token_at - request.created_at, model=model)


class _RequestCounter:
    """ASGI middleware that counts all requests, also those that the guard refuses."""

    def __init__(self, app: ASGIApp, requests: Record) -> None:
        self._app, self._requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Clients can invent any number of paths, so those without a route count as one.
                path = getattr(scope.get("route"), "path", "other")
                self._requests(1, path=path, status=str(message["status"]))
            await send(message)

        await self._app(scope, receive, count)
