"""Defines the HTTP application: OpenAI's API, `/generate` and health. It runs without Ray.

Requests are validated only here; the engine trusts them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve.engine import Chunk
from serve.errors import ApiError
from serve.guard import Guard, PlainRoutes
from serve.in_flight import InFlight, InFlightAnswers
from serve.models import ServedModel, engines
from serve.openai_bodies import Body, ErrorBody, Usage
from serve.openai_requests import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    StreamableRequest,
    explain_validation_error,
)
from serve.openai_responses import (
    ChatResponseBuilder,
    CompletionResponseBuilder,
    ResponseBuilder,
    error_response,
    model_card,
)

_JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json *(;|$)", re.IGNORECASE)
_STREAM_INTERVAL = 0.02
"""Seconds between two events of a stream. Each event costs Ray Serve a millisecond, so they must
not come too often."""


def create_app(
    models: dict[str, ServedModel],
    key: str | None,
    seconds: float = 120.0,
    max_body_bytes: int = 1_000_000,
    allowed_origins: tuple[str, ...] = (),
) -> FastAPI:
    """Returns the application over loaded models, of which the first is the default.

    Without a key only clients on this machine are answered. `seconds` is the time limit of a
    request. Pages of `allowed_origins` may call the API from a browser; `*` allows all.
    """
    # What surrounds the routes.
    app = FastAPI(title="dpo-tune", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(
        Guard, key=key, max_body_bytes=max_body_bytes, allowed_origins=allowed_origins
    )
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(PlainRoutes)
    _add_error_handlers(app)
    in_flight = app.state.in_flight = InFlight()

    # The routes.
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = find_model(models, body.model)
        prompt = await model.prompts.of_chat(body.for_template())
        answers = submit(body, model, [prompt], seconds, in_flight)
        builder = ChatResponseBuilder(model.name, model.tokenizer, bool(body.stream))
        return await _respond(body, answers, builder, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model = find_model(models, body.model)
        _refuse_too_many(len(body.prompts) * (body.n or 1), model)
        prompts = [await model.prompts.of_text(text) for text in body.prompts]
        answers = submit(body, model, prompts, seconds, in_flight)
        builder = CompletionResponseBuilder(model.name, model.tokenizer)
        return await _respond(body, answers, builder, request)

    @app.post("/generate")
    async def generate(body: GenerateRequest, request: Request) -> Response:
        model = find_model(models, body.model)
        chat = body.as_chat()
        prompt = await model.prompts.of_chat(chat.for_template())
        answers = submit(chat, model, [prompt], seconds, in_flight)
        async with answers.unless_disconnected(request):
            (chunk,) = await answers.whole()
        reason = chunk.finish_reason
        return JSONResponse({"text": chunk.text, "model": model.name, "finish_reason": reason})

    @app.get("/v1/models")
    async def list_models() -> Response:
        data = [model_card(model.name, model.created) for model in models.values()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        model = find_model(models, name)
        return JSONResponse(model_card(model.name, model.created))

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthy() -> Response:
        if all(engine.is_alive for engine in engines(models)):
            return PlainTextResponse("ok")
        raise ApiError(503, "an engine has stopped; restart the server", "server_error")

    return app


def find_model(models: dict[str, ServedModel], name: str | None) -> ServedModel:
    """Returns the model of that name, or the first if none is given. Raises ApiError 404."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f"no model {name!r}; there are: {', '.join(models)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return models[name]


def submit(
    body: StreamableRequest,
    model: ServedModel,
    prompts: list[list[int]],
    seconds: float,
    in_flight: InFlight,
) -> InFlightAnswers:
    """Queues all answers of a request, or none if one of them does not fit into the queue.

    Raises ApiError 400 and 503.
    """
    answers_per_prompt = body.n or 1
    _refuse_too_many(len(prompts) * answers_per_prompt, model)
    _refuse_unknown_tokens(body, model)
    settings = [
        (ids, body.sampling(_max_new_tokens(body, ids, model), number, model.defaults))
        for ids in prompts
        for number in range(answers_per_prompt)
    ]
    answers = InFlightAnswers(model, settings, seconds, bool(body.stream))
    in_flight.submit(answers)
    return answers


def _refuse_too_many(answers: int, model: ServedModel) -> None:
    most = model.engine.slots + model.engine.max_waiting
    if answers > most:
        raise ApiError(
            400, f"{answers} answers in one request; at most {most} are allowed", param="n"
        )


def _refuse_unknown_tokens(body: StreamableRequest, model: ServedModel) -> None:
    size = model.engine.vocabulary
    if unknown := [token for token in body.logit_bias or {} if token >= size]:
        message = f"logit_bias: no token {unknown[0]}; the vocabulary has {size} tokens"
        raise ApiError(400, message, param="logit_bias")


def _max_new_tokens(body: StreamableRequest, prompt_ids: list[int], model: ServedModel) -> int:
    """Returns the most tokens of an answer. Raises ApiError 400 if they exceed the context."""
    context = model.engine.context
    free, requested = context - len(prompt_ids), body.max_new_tokens()
    if not prompt_ids:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if free < 1 or (requested or 1) > free:
        raise ApiError(
            400,
            f"{len(prompt_ids)} tokens of prompt and {requested or 1} of answer are more than the "
            f"context of {context}",
            param="max_tokens" if free >= 1 else None,
            code="context_length_exceeded",
        )
    return requested or min(free, model.defaults.max_new_tokens or free)


async def _respond(
    body: StreamableRequest, answers: InFlightAnswers, builder: ResponseBuilder, request: Request
) -> Response:
    # We wait for the first chunk before the status is sent, so that an early error has its status.
    async with answers.unless_disconnected(request):
        if not body.stream:
            return JSONResponse(builder.whole(await answers.whole(), _usage(answers)))
        first = await answers.next()
    return _EventStream(_events(body, answers, builder, first), answers)


class _EventStream(StreamingResponse):
    """A stream of server-sent events. When it ends, its answers are cancelled, even if it never
    began."""

    def __init__(self, events: AsyncIterator[str], answers: InFlightAnswers) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answers = answers

    async def __call__(self, *given: Any) -> None:
        try:
            await super().__call__(*given)
        finally:
            self._answers.cancel()


def _usage(answers: InFlightAnswers) -> Usage:
    # Several answers to one prompt share its list of ids, so the prompt counts once.
    requests = answers.requests
    prompts = {id(request.prompt_ids): len(request.prompt_ids) for request in requests}
    prompt = sum(prompts.values())
    completion = sum(len(request.output_ids) for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def _events(
    body: StreamableRequest,
    answers: InFlightAnswers,
    builder: ResponseBuilder,
    ready: dict[int, Chunk],
) -> AsyncIterator[str]:
    """Yields the events of a stream: the chunks of all choices as they come."""
    for content in builder.first_chunks(len(answers.requests)):
        yield _event(content)
    try:
        while ready:
            for index, chunk in ready.items():
                if chunk.text or chunk.tokens or chunk.finish_reason:
                    yield _event(builder.chunk(index, chunk))
            await asyncio.sleep(_STREAM_INTERVAL)
            ready = await answers.next()
    except ApiError as error:
        yield _event(error.body)
        return
    if body.includes_usage:
        yield _event(builder.whole([], _usage(answers)))
    yield "data: [DONE]\n\n"


def _event(content: Body | ErrorBody) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if not _JSON_TYPE.match(kind):
            problem = f"the content type is {kind}" if kind else "the content type is missing"
            return error_response(ApiError(415, f"{problem}; send application/json"))
        message, param = explain_validation_error(error.errors()[0])
        return error_response(ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        refusal = ApiError(error.status_code, str(error.detail))
        return error_response(refusal.with_headers(error.headers))
