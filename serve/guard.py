"""Decides which clients are answered, and limits the size of bodies, before anything is parsed.

Without a key only programs on this machine are answered. A key is sent as a bearer token or, from a
browser, as the password in its dialog. Keys are compared in constant time and never logged.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import re

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError
from serve.openai_responses import error_response
from serve.options import is_loopback

_OPEN = ("/healthz", "/readyz")
_BODY_SECONDS = 30.0
"""A body that takes longer to arrive gets status 408."""
_MOST_BYTES_AT_ONCE = 64_000_000
"""The most bytes of all bodies that are being read at once."""


class Guard:
    """ASGI middleware that refuses requests which the application must not see."""

    def __init__(
        self, app: ASGIApp, key: str | None, max_body_bytes: int, allowed_origins: tuple[str, ...]
    ) -> None:
        assert key != ""
        self._app = app
        self._key = key
        self._max_body_bytes = max_body_bytes
        self._allowed_origins = allowed_origins
        self._bytes_now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on with its body."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # websockets are not used here
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].removeprefix(scope.get("root_path", "")) in _OPEN:
            await self._app(scope, receive, send)  # these routes read no body
            return
        request = Request(scope, receive)
        try:
            self._refuse_strangers(request)
            self._refuse_other_sites(request.headers)
            body: bytes | None = await self._read_body(request)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return

        async def receive_again() -> Message:
            nonlocal body
            if body is None:
                return await receive()  # the disconnect
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, receive_again, send)

    def _refuse_strangers(self, request: Request) -> None:
        headers = request.headers
        if self._key is not None:
            # Headers are decoded as latin-1, but clients likely send UTF-8, so we compare bytes.
            presented = _presented_key(headers).encode("latin-1", errors="replace")
            if not hmac.compare_digest(presented, self._key.encode()):
                raise ApiError(
                    401, "the key is missing or wrong", "authentication_error",
                    code="invalid_api_key",
                ).with_headers({"WWW-Authenticate": 'Basic realm="key"'})  # fmt: skip
            return
        # Behind a proxy on this machine all clients seem to be local, so we refuse requests with a
        # proxy's headers. A web page could reach this port under its own host name (DNS rebinding),
        # so we also check the name.
        is_forwarded = any(
            name in ("forwarded", "via", "x-real-ip") or name.startswith("x-forwarded-")
            for name in headers
        )
        name = re.sub(r":\d+$", "", headers.get("host", ""))
        name = name.removeprefix("[").removesuffix("]")
        client = request.client.host if request.client else ""
        if is_forwarded or not is_loopback(client) or not is_loopback(name):
            raise ApiError(
                403, "without a key only programs on this machine are answered; set SERVE_API_KEY",
                "permission_error",
            )  # fmt: skip

    def _refuse_other_sites(self, headers: Headers) -> None:
        """Refuses web pages of other sites, which could use a browser that has the key."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and {origin, "*"} & set(self._allowed_origins):
            return
        is_other = origin is not None and origin.partition("://")[2] != host
        # A link may open our page, but a frame of another site must not contain it.
        is_link = (
            headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest", "document") == "document"
        )
        if is_other or (headers.get("sec-fetch-site") == "cross-site" and not is_link):
            raise ApiError(403, "web pages of other sites are not answered", "permission_error")

    async def _read_body(self, request: Request) -> bytes:
        """Returns the body. Raises ApiError 408, 413 and 503."""
        most = self._max_body_bytes
        too_large = ApiError(413, f"the body may have at most {most} bytes")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes_now += len(chunk)
                    if len(body) > most:
                        raise too_large
                    if self._bytes_now > _MOST_BYTES_AT_ONCE:
                        raise ApiError(
                            503, "too many large bodies at once; try again in a second",
                            "overloaded_error",
                        ).with_headers({"Retry-After": "1"})  # fmt: skip
        except TimeoutError:
            raise ApiError(408, f"the body took more than {_BODY_SECONDS:g} s") from None
        except ClientDisconnect:
            pass  # the application will notice it too
        finally:
            self._bytes_now -= len(body)
        return bytes(body)


def _presented_key(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(value).decode("latin-1").partition(":")[2]
    return ""


class PlainRoutes:
    """ASGI middleware that treats HEAD as GET, and removes a slash at the end of a path.

    Under a route prefix the web page is at `prefix/`, since its files are relative to that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with the path and method that the app knows."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # uvicorn keeps the original scope, so it still omits the body of an answer to HEAD.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        prefix = scope.get("root_path", "")  # the path contains it too
        path = scope["path"].removeprefix(prefix)
        if prefix and not path:
            await RedirectResponse(f"{prefix}/")(scope, receive, send)
            return
        plain = {**scope, "method": method, "path": prefix + (path.rstrip("/") or "/")}

        async def send_with_route(message: Message) -> None:
            scope["route"] = plain.get("route")  # the request counter outside reads it
            await send(message)

        await self._app(plain, receive, send_with_route)
