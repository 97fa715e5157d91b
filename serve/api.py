"""The HTTP application: OpenAI's API, `/generate`, health. A factory, so that it runs without Ray.

Validates once, here; the engine behind it trusts what it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from serve.engine import Chunk, Full
from serve.guard import Guard
from serve.in_flight import Merged, Pending
from serve.model_source import one_line
from serve.models import Served, engines
from serve.openai_requests import (
    ApiError,
    Asked,
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    Streamed,
    explain,
    model_card,
    usage,
)
from serve.openai_responses import ChatForm, CompletionForm, Form

T = TypeVar("T")
_PART_SECONDS = 0.02
"""Between two parts of a stream: each costs Ray Serve's proxy and replica a millisecond."""


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    seconds: float = 120.0
    body_bytes: int = 1_000_000


def create_app(models: dict[str, Served], limits: Limits, key: str | None) -> FastAPI:
    """The application over loaded models, the first of which is the default.

    Without a key only clients on this machine are answered.
    """
    app = FastAPI(title="dpo-tune", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, body_bytes=limits.body_bytes)
    _add_errors(app)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        model = find(models, asked.model)
        prompt = chat_tokens(model, [message.for_template() for message in asked.messages])
        pending = begin(asked, model, [prompt], limits, asked.n or 1)
        form = ChatForm(model.name, model.tokenizer)
        return await _respond(asked, pending, form, request)

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        model = find(models, asked.model)
        _refuse_too_many(len(asked.prompts) * (asked.n or 1), model)
        prompts = [_text_tokens(model, text) for text in asked.prompts]
        pending = begin(asked, model, prompts, limits, asked.n or 1)
        form = CompletionForm(model.name, model.tokenizer)
        return await _respond(asked, pending, form, request)

    @app.post("/generate")
    async def generate(asked: GenerateRequest, request: Request) -> dict[str, Any]:
        model = find(models, asked.model)
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        prompt = chat_tokens(model, [*system, {"role": "user", "content": asked.prompt}])
        (pending,) = begin(asked, model, [prompt], limits)
        chunk = await _while_listening(request, [pending], pending.whole())
        return {"text": chunk.text, "model": model.name, "finish_reason": chunk.finish_reason}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        data = [model_card(model.name, model.created) for model in models.values()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        model = find(models, name)
        return model_card(model.name, model.created)

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthy() -> Response:
        if all(engine.is_alive for engine in engines(models)):
            return PlainTextResponse("ok")
        raise ApiError(503, "an engine has ended", "server_error")

    return app


def find(models: dict[str, Served], name: str | None) -> Served:
    """The model of that name, or the first. Raises ApiError 404."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f"no model {name!r}; there are: {', '.join(models)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return models[name]


def chat_tokens(model: Served, messages: list[dict[str, str]]) -> list[int]:
    """The messages as the model's template renders them. Raises ApiError 400."""
    try:
        encoded: Any = model.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except Exception as error:  # templates raise what they like
        reason = one_line(error)
        raise ApiError(400, f"messages: the chat template refuses them: {reason}") from None
    return list(encoded["input_ids"])


def begin(
    asked: Asked, model: Served, prompts: list[list[int]], limits: Limits, each: int = 1
) -> list[Pending]:
    """Queues every answer of a request; drops them all if there is no room for one.

    Raises ApiError 400, 503.
    """
    _refuse_too_many(len(prompts) * each, model)
    pending = [
        Pending(
            prompt,
            asked.sampling(_most_tokens(asked, prompt, model.engine.context), number),
            model,
            limits.seconds,
            asked.in_parts,
        )
        for prompt in prompts
        for number in range(each)
    ]
    try:
        for one in pending:
            model.engine.submit(one.answer)
    except Full:
        for one in pending:
            one.drop()
        message = "all places are taken; try again in a second"
        raise ApiError(503, message, "overloaded_error", headers={"Retry-After": "1"}) from None
    return pending


def _refuse_too_many(answers: int, model: Served) -> None:
    most = model.engine.slots + model.engine.most_waiting
    if answers > most:
        raise ApiError(400, f"{answers} answers in one request; at most {most}", param="n")


def _text_tokens(model: Served, text: str) -> list[int]:
    try:
        return list(model.tokenizer(text)["input_ids"])
    except Exception as error:  # a lone surrogate, for one
        reason = one_line(error)
        raise ApiError(400, f"prompt: {reason}", param="prompt") from None


def _most_tokens(asked: Asked, prompt: list[int], context: int) -> int:
    room, wanted = context - len(prompt), asked.most_tokens()
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if room < 1 or (wanted or 1) > room:
        raise ApiError(
            400,
            f"{len(prompt)} tokens of prompt and {wanted or 1} of answer are more than the "
            f"context of {context}",
            param="max_tokens" if room >= 1 else None,
            code="context_length_exceeded",
        )
    return wanted or room


async def _respond(
    asked: Streamed, pending: list[Pending], form: Form, request: Request
) -> Response:
    if asked.stream:
        merged = Merged(pending)
        # The first chunk comes before the status is sent: what fails until then has one of its own.
        try:
            first = await _while_listening(request, pending, merged.next())
        except BaseException:
            merged.close()
            raise
        return _Stream(_events(asked, pending, form, merged, first), pending, merged)
    chunks = await _while_listening(request, pending, _gather([p.whole() for p in pending]))
    return JSONResponse(form.whole(chunks, _usage(pending)))


class _Stream(StreamingResponse):
    """Server-sent events; drops its answers at its end, though it may never have begun."""

    def __init__(self, events: AsyncIterator[str], pending: list[Pending], merged: Merged) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._pending, self._merged = pending, merged

    async def __call__(self, *given: Any) -> None:
        try:
            await super().__call__(*given)
        finally:
            self._merged.close()
            for one in self._pending:
                one.drop()


async def _gather(waiting: list[Any]) -> list[Chunk]:
    tasks = [asyncio.ensure_future(one) for one in waiting]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # when one failed the others would wait for ever
            task.cancel()


def _usage(pending: list[Pending]) -> dict[str, int]:
    prompts = {id(one.answer.prompt): len(one.answer.prompt) for one in pending}
    return usage(sum(prompts.values()), sum(len(one.answer.ids) for one in pending))


async def _while_listening(request: Request, pending: list[Pending], work: Awaitable[T]) -> T:
    """The result, unless the client goes: then what it asked for is dropped."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client has gone")
    except BaseException:
        for one in pending:
            one.drop()
        raise
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    asked: Streamed, pending: list[Pending], form: Form, merged: Merged, ready: dict[int, Chunk]
) -> AsyncIterator[str]:
    """The choices of one request come as their tokens do."""
    for part in form.opening(len(pending)):
        yield _event(part)
    try:
        while ready:
            for index, chunk in ready.items():
                if chunk.text or chunk.tokens or chunk.finish_reason:
                    yield _event(form.part(index, chunk))
            await asyncio.sleep(_PART_SECONDS)
            ready = await merged.next()
    except ApiError as error:
        yield _event(error.body)
        return
    if asked.includes_usage:
        yield _event(form.closing(_usage(pending)))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_form(_: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors()[0])
        return JSONResponse(ApiError(400, message, param=param).body, 400)

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        body = ApiError(error.status_code, str(error.detail)).body
        return JSONResponse(body, error.status_code, error.headers)
