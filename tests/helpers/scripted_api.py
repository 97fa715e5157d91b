"""Serves the page over a double of the API, whose answers a test chooses.

The sample model writes no Markdown, loses no connection and has no failures to show.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve import ui


@dataclass
class Script:
    """The answers of the API, and the bodies that it received."""

    answers: dict[str, str] = field(default_factory=dict)
    """Answers by the last prompt. Other prompts come back in capitals, with the model's name."""
    refusal: tuple[int, dict[str, str], dict[str, str | None]] | None = None
    """Status, headers and error that answer every request, if set."""
    is_cut: bool = False
    """Whether streams break off in the middle."""
    is_endless: bool = False
    """Whether streams go on until the client has gone."""
    bodies: list[dict[str, object]] = field(default_factory=list)
    gone: int = 0
    """Number of clients that left before the end."""


def create_app(
    script: Script, models: list[str], author: str = "By Jo", examples: tuple[str, ...] = ()
) -> FastAPI:
    """Make an application with the page and the double of the API."""
    app = FastAPI()
    ui.mount(app, models, author, list(examples))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        script.bodies.append(body)
        if script.refusal:
            status, headers, error = script.refusal
            return JSONResponse({"error": error}, status, headers)
        prompt = body["messages"][-1]["content"]
        text = script.answers.get(prompt, f"{prompt.upper()} ({body['model']})")
        return StreamingResponse(_events(script, text), media_type="text/event-stream")

    return app


async def _events(script: Script, text: str) -> AsyncIterator[str]:
    size = max(7, len(text) // 100)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    try:
        for piece in pieces[: len(pieces) // 2] if script.is_cut else pieces:
            yield _event({"content": piece}, None)
            await asyncio.sleep(0.001)
        while script.is_endless:
            yield _event({"content": "on and "}, None)
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        script.gone += 1
        raise
    if not script.is_cut:
        yield _event({}, "stop")
        yield "data: [DONE]\n\n"


def _event(delta: dict[str, str], reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"
