"""This is the web page at `/`: a prompt, a button, the answer as it comes, the base's beside it.

Gradio lays it out, and `page.js` asks the API from the browser. Gradio's own events would need the
same replica for the whole of an answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

_BASE = "base"
_SCRIPT = Path(__file__).parent / "page.js"
# The page is the form and no more: Gradio's own footer goes.
_STYLE = """
footer {display: none !important}
.author {text-align: center; opacity: 0.7}
body:not(.comparing) #other {display: none}
"""


def mount(app: FastAPI, models: list[str], author: str, examples: list[str]) -> None:
    """Adds the page to an application that serves models of these names.

    The first one answers. If one is named `base`, its answer can be seen beside.
    """
    first = models[0]
    can_compare = _BASE in models and first != _BASE
    with gr.Blocks(title=f"{first} · dpo-tune", analytics_enabled=False) as page:
        gr.Markdown(f"## {first}")
        prompt = gr.Textbox(label="Prompt", lines=3, autofocus=True,
                            placeholder="Ask something; Shift+Enter sends it")  # fmt: skip
        with gr.Row():
            generate = gr.Button("Generate", variant="primary")
            compare = gr.Button("Compare with the base", visible=can_compare)
        with gr.Row():
            answer = _answer_box(f"Answer of {first}", "answer")
            other = _answer_box("Answer of the base", "other")
        with gr.Accordion("Settings", open=False):
            system = gr.Textbox(label="System prompt", lines=2)
            temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature; 0 is greedy")
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
            max_tokens = gr.Slider(1, 1024, value=200, step=1, label="Most tokens")
        if examples:
            dataset = gr.Dataset(
                label="Examples", components=["textbox"], samples=[[text] for text in examples]
            )
            dataset.click(None, dataset, prompt, js=f"(index) => {json.dumps(examples)}[index]")
        if author:
            gr.Markdown(author, elem_classes="author")
        inputs = [prompt, system, temperature, top_p, max_tokens]
        ask_first = f"(...given) => generate({json.dumps(first)}, ...given)"
        ask_both = f"(...given) => compare({json.dumps(first)}, '{_BASE}', ...given)"
        gr.on([generate.click, prompt.submit], None, inputs, answer, js=ask_first)
        gr.on([compare.click], None, inputs, [answer, other], js=ask_both)
    head = f"<script>{_SCRIPT.read_text()}</script>"
    gr.mount_gradio_app(app, page, path="/", css=_STYLE, head=head)


def _answer_box(label: str, name: str) -> gr.Textbox:
    return gr.Textbox(label=label, lines=6, min_width=300, interactive=False, elem_id=name)
