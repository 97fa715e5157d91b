"""Who may ask, and how much a body may hold: decided before anything is parsed.

Without a key only programs on this machine are answered. With one it may come as a bearer token or,
from a browser, as the password of its own dialog. Keys are compared in constant time, never logged.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from serve.schema import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_OPEN = ("/healthz", "/readyz")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, key: str | None, body_bytes: int) -> None:
        self._app = app
        self._key = key
        self._most = body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # nothing here speaks it
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] not in _OPEN:
                self._refuse_strangers(scope, headers)
            body: bytes | None = await self._whole_body(headers, receive)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return

        async def again() -> Message:
            nonlocal body
            if body is None:
                return await receive()  # the disconnect
            told, body = body, None
            return {"type": "http.request", "body": told, "more_body": False}

        await self._app(scope, again, send)

    def _refuse_strangers(self, scope: Message, headers: Headers) -> None:
        if self._key is not None:
            if not hmac.compare_digest(_given(headers).encode(), self._key.encode()):
                raise ApiError(
                    401, "the key is missing or wrong", "authentication_error",
                    code="invalid_api_key", headers={"WWW-Authenticate": 'Basic realm="key"'},
                )  # fmt: skip
            return
        # Behind a proxy on this machine everyone would seem to be here; and a page of the web could
        # reach this port by a name of its own (DNS rebinding).
        is_forwarded = "x-forwarded-for" in headers or "forwarded" in headers
        name = headers.get("host", "").rsplit(":", 1)[0] if headers.get("host") else ""
        if is_forwarded or not _is_here(scope) or name not in _LOCAL_NAMES:
            raise ApiError(
                403, "without a key only programs on this machine are answered; set SERVE_API_KEY",
                "permission_error",
            )  # fmt: skip

    async def _whole_body(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._most:
            raise self._too_large()
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                break
            body += message.get("body", b"")
            if len(body) > self._most:
                raise self._too_large()
            if not message.get("more_body"):
                break
        return body

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body may have at most {self._most} bytes")


def _given(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _is_here(scope: Message) -> bool:
    host, _ = scope.get("client") or ("", 0)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
