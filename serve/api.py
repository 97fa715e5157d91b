"""This is the HTTP application: OpenAI's API, `/generate` and health. It runs without Ray.

Requests are validated here, and only here; the engine behind it trusts what it is given.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from serve.engine import Chunk, QueueFull
from serve.guard import Guard
from serve.in_flight import InFlightAnswer, MergedAnswers, cancel_all, unless_disconnected
from serve.model_source import one_line
from serve.models import ServedModel, engines
from serve.openai_requests import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    GenerateRequest,
    StreamableRequest,
    explain_validation_error,
)
from serve.openai_responses import (
    ApiError,
    ChatResponseBuilder,
    CompletionResponseBuilder,
    ResponseBuilder,
    model_card,
    usage,
)

_STREAM_INTERVAL = 0.02
"""Seconds between events of a stream: each costs Ray Serve's proxy and replica a millisecond."""


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    seconds: float = 120.0
    max_body_bytes: int = 1_000_000


def create_app(models: dict[str, ServedModel], limits: Limits, key: str | None) -> FastAPI:
    """Returns the application over loaded models, the first of which is the default.

    Without a key only clients on this machine are answered.
    """
    app = FastAPI(title="dpo-tune", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, max_body_bytes=limits.max_body_bytes)
    _add_error_handlers(app)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = find_model(models, body.model)
        prompt_ids = chat_prompt_ids(model, [message.for_template() for message in body.messages])
        answers = submit(body, model, [prompt_ids], limits, body.n or 1)
        builder = ChatResponseBuilder(model.name, model.tokenizer)
        return await _respond(body, answers, builder, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model = find_model(models, body.model)
        _refuse_too_many(len(body.prompts) * (body.n or 1), model)
        prompts = [_text_prompt_ids(model, text) for text in body.prompts]
        answers = submit(body, model, prompts, limits, body.n or 1)
        builder = CompletionResponseBuilder(model.name, model.tokenizer)
        return await _respond(body, answers, builder, request)

    @app.post("/generate")
    async def generate(body: GenerateRequest, request: Request) -> dict[str, Any]:
        model = find_model(models, body.model)
        system = [{"role": "system", "content": body.system}] if body.system else []
        messages = [*system, {"role": "user", "content": body.prompt}]
        (answer,) = submit(body, model, [chat_prompt_ids(model, messages)], limits)
        chunk = await unless_disconnected(request, [answer], answer.whole())
        return {"text": chunk.text, "model": model.name, "finish_reason": chunk.finish_reason}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        data = [model_card(model.name, model.created) for model in models.values()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        model = find_model(models, name)
        return model_card(model.name, model.created)

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthy() -> Response:
        if all(engine.is_alive for engine in engines(models)):
            return PlainTextResponse("ok")
        raise ApiError(503, "an engine has ended", "server_error")

    return app


def find_model(models: dict[str, ServedModel], name: str | None) -> ServedModel:
    """Returns the model of that name, or the first if none is given. Raises ApiError 404."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f"no model {name!r}; there are: {', '.join(models)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return models[name]


def chat_prompt_ids(model: ServedModel, messages: list[dict[str, str]]) -> list[int]:
    """Returns the messages as the model's template renders them. Raises ApiError 400."""
    try:
        encoded: Any = model.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except Exception as error:  # templates raise what they like
        reason = one_line(error)
        raise ApiError(400, f"messages: the chat template refuses them: {reason}") from None
    return list(encoded["input_ids"])


def submit(
    body: CommonRequest,
    model: ServedModel,
    prompts: list[list[int]],
    limits: Limits,
    answers_per_prompt: int = 1,
) -> list[InFlightAnswer]:
    """Queues every answer of a request, and cancels them all if there is no room for one.

    Raises ApiError 400, 503.
    """
    _refuse_too_many(len(prompts) * answers_per_prompt, model)
    answers = [
        InFlightAnswer(
            prompt_ids,
            body.sampling(_max_new_tokens(body, prompt_ids, model.engine.context), number),
            model,
            limits.seconds,
            body.is_streamed,
        )
        for prompt_ids in prompts
        for number in range(answers_per_prompt)
    ]
    try:
        for answer in answers:
            model.engine.submit(answer.request)
    except QueueFull:
        cancel_all(answers)
        message = "all places are taken; try again in a second"
        raise ApiError(503, message, "overloaded_error", headers={"Retry-After": "1"}) from None
    return answers


def _refuse_too_many(answers: int, model: ServedModel) -> None:
    most = model.engine.slots + model.engine.max_waiting
    if answers > most:
        raise ApiError(400, f"{answers} answers in one request; at most {most}", param="n")


def _text_prompt_ids(model: ServedModel, text: str) -> list[int]:
    try:
        return list(model.tokenizer(text)["input_ids"])
    except Exception as error:  # a lone surrogate, for one
        reason = one_line(error)
        raise ApiError(400, f"prompt: {reason}", param="prompt") from None


def _max_new_tokens(body: CommonRequest, prompt_ids: list[int], context: int) -> int:
    room, wanted = context - len(prompt_ids), body.max_new_tokens()
    if not prompt_ids:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if room < 1 or (wanted or 1) > room:
        raise ApiError(
            400,
            f"{len(prompt_ids)} tokens of prompt and {wanted or 1} of answer are more than the "
            f"context of {context}",
            param="max_tokens" if room >= 1 else None,
            code="context_length_exceeded",
        )
    return wanted or room


async def _respond(
    body: StreamableRequest,
    answers: list[InFlightAnswer],
    builder: ResponseBuilder,
    request: Request,
) -> Response:
    if body.stream:
        merged = MergedAnswers(answers)
        # The first chunk comes before the status is sent: what fails until then has one of its own.
        try:
            first = await unless_disconnected(request, answers, merged.next())
        except BaseException:
            merged.close()
            raise
        return _EventStream(_events(body, answers, builder, merged, first), answers, merged)
    whole = _gather([answer.whole() for answer in answers])
    chunks = await unless_disconnected(request, answers, whole)
    return JSONResponse(builder.whole(chunks, _usage(answers)))


class _EventStream(StreamingResponse):
    """Server-sent events. At its end it cancels its answers, also if it has never begun."""

    def __init__(
        self, events: AsyncIterator[str], answers: list[InFlightAnswer], merged: MergedAnswers
    ) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answers, self._merged = answers, merged

    async def __call__(self, *given: Any) -> None:
        try:
            await super().__call__(*given)
        finally:
            self._merged.close()
            cancel_all(self._answers)


async def _gather(coroutines: list[Any]) -> list[Chunk]:
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # when one failed the others would wait for ever
            task.cancel()


def _usage(answers: list[InFlightAnswer]) -> dict[str, int]:
    requests = [answer.request for answer in answers]
    # The answers to one prompt share its list of ids, which counts once.
    prompts = {id(one.prompt_ids): len(one.prompt_ids) for one in requests}
    return usage(sum(prompts.values()), sum(len(one.output_ids) for one in requests))


async def _events(
    body: StreamableRequest,
    answers: list[InFlightAnswer],
    builder: ResponseBuilder,
    merged: MergedAnswers,
    ready: dict[int, Chunk],
) -> AsyncIterator[str]:
    """Yields the chunks of all choices as they come."""
    for content in builder.first_chunks(len(answers)):
        yield _event(content)
    try:
        while ready:
            for index, chunk in ready.items():
                if chunk.text or chunk.tokens or chunk.finish_reason:
                    yield _event(builder.chunk(index, chunk))
            await asyncio.sleep(_STREAM_INTERVAL)
            ready = await merged.next()
    except ApiError as error:
        yield _event(error.body)
        return
    if body.includes_usage:
        yield _event(builder.usage_chunk(_usage(answers)))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> Response:
        message, param = explain_validation_error(error.errors()[0])
        return JSONResponse(ApiError(400, message, param=param).body, 400)

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        body = ApiError(error.status_code, str(error.detail)).body
        return JSONResponse(body, error.status_code, error.headers)
