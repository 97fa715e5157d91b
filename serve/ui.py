"""Serves the web page at `/`, on which people chat with the models.

The page consists of static files and calls the API from the browser like any client. So any replica
can answer a prompt, and the server stores no conversation.
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
    # Scripts, styles and API calls are allowed for this server only.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the server brings new files
}


def mount(app: FastAPI, models: list[str], author: str, examples: list[str]) -> None:
    """Adds the page to an application that serves models with these names.

    The first model is selected when the page is opened. `author` is shown at the bottom. A click on
    one of the `examples` fills the prompt. The page's files are read once, here.
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
