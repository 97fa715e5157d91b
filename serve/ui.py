"""This is the web page at `/`: a conversation with the models that stand behind the API beside it.

The page is a few static files, and asks the API from the browser as any client does: any replica
may answer each prompt, and the server keeps nothing of a conversation.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # Scripts, styles and the API come from here, and nothing from anywhere else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the server brings new files
}


def mount(app: FastAPI, models: list[str], author: str, examples: list[str]) -> None:
    """Adds the page to an application that serves models of these names.

    The first one is chosen when the page is opened. `author` stands at its foot, and an example
    fills the prompt. The page's files are read once, here.
    """
    templates = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    facts = {"models": models, "author": author, "examples": examples}
    html = templates.get_template("page.html").render(server=facts)
    files = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=_HEADERS)
