"""The web page at `/`: a prompt, a button, the answer as it is written; the base's beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from fastapi import FastAPI

from serve.api import Limits, begin, chat_tokens, find
from serve.models import Served
from serve.schema import ApiError, Streamed

_BASE = "base"
# The page is the form and no more: Gradio's own footer goes.
_STYLE = "footer {display: none !important} .author {text-align: center; opacity: 0.7}"


def mount(
    app: FastAPI,
    models: dict[str, Served],
    limits: Limits,
    author: str = "",
    examples: list[str] | None = None,
) -> FastAPI:
    """Adds the page to an application. With a model named `base`, both answers can be seen."""
    answering = _Answering(models, limits)
    first = next(iter(models))
    can_compare = _BASE in models and first != _BASE
    with gr.Blocks(title=f"{first} · dpo-tune", analytics_enabled=False) as page:
        gr.Markdown(f"## {first}")
        prompt = gr.Textbox(label="Prompt", lines=3, placeholder="Ask something", autofocus=True)
        with gr.Row():
            generate = gr.Button("Generate", variant="primary")
            compare = gr.Button("Compare with the base", visible=can_compare)
        with gr.Row():
            answer = gr.Textbox(label=f"Answer of {first}", lines=6, interactive=False)
            other = gr.Textbox(label="Answer of the base", lines=6, interactive=False,
                               visible=False)  # fmt: skip
        with gr.Accordion("Settings", open=False):
            system = gr.Textbox(label="System prompt", lines=2)
            temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature; 0 is greedy")
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
            most = gr.Slider(1, 1024, value=200, step=1, label="Most tokens")
        if examples:
            gr.Examples(examples, inputs=prompt)
        if author:
            gr.Markdown(author, elem_classes="author")
        inputs: list[Any] = [prompt, system, temperature, top_p, most]
        asked = [generate.click, prompt.submit]
        gr.on(asked, answering.by_first, inputs, [answer, other], concurrency_limit=None)
        gr.on([compare.click], answering.by_both, inputs, [answer, other], concurrency_limit=None)
    mounted: FastAPI = gr.mount_gradio_app(app, page, path="/", css=_STYLE, show_error=True)
    return mounted


class _Answering:
    def __init__(self, models: dict[str, Served], limits: Limits) -> None:
        self._models, self._limits = models, limits

    async def by_first(self, *given: Any) -> AsyncIterator[tuple[Any, Any]]:
        async for text in self._answer(None, *given):
            yield text, gr.skip()
        yield gr.skip(), gr.update(visible=False, value="")

    async def by_both(self, *given: Any) -> AsyncIterator[tuple[Any, Any]]:
        yield "", gr.update(visible=True, value="")
        async for text in self._answer(None, *given):
            yield text, gr.skip()
        async for text in self._answer(_BASE, *given):
            yield gr.skip(), text

    async def _answer(
        self,
        name: str | None,
        prompt: str | None,
        system: str | None,
        temperature: float,
        top_p: float,
        most: int,
    ) -> AsyncIterator[str]:
        """The text so far, again and again."""
        # What was never typed into comes as None.
        if not prompt or not prompt.strip():
            raise gr.Error("Type a prompt first.")
        model = find(self._models, name)
        messages = [{"role": "system", "content": system}] if system and system.strip() else []
        messages.append({"role": "user", "content": prompt})
        try:
            tokens = chat_tokens(model, messages)
            room = max(1, min(int(most), model.engine.context - len(tokens)))
            asked = Streamed(stream=True, temperature=temperature, top_p=top_p, max_tokens=room)
            (pending,) = begin(asked, model, [tokens], self._limits)
        except ApiError as error:
            raise gr.Error(str(error)) from None
        text = ""
        try:
            async for chunk in pending.rest(await pending.first()):
                if chunk.finish_reason == "error":
                    raise gr.Error(f"The model failed: {chunk.text}")
                text += chunk.text
                yield text
        except ApiError as error:
            raise gr.Error(str(error)) from None
        finally:
            pending.drop()
