"""Clients that send slowly, that are many, or that wait when the server ends."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dpo_train import sample
from serve import api, guard, http_server, models
from serve.http_server import HttpServer
from serve.models import ServedModel

MESSAGE = {"messages": [{"role": "user", "content": "Do bats see?"}]}


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, ServedModel]]:
    loaded = models.load([f"winner={sample.MODEL}"], slots=1, context=256, max_waiting=4)
    yield loaded
    loaded["winner"].engine.close()


class Served:
    """A server that runs in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = self._listening.getsockname()[:2]
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = HttpServer(app, app.state.in_flight)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self.server.serve([self._listening]))

    def end(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def served(loaded: dict[str, ServedModel]) -> Iterator[Served]:
    served = Served(api.create_app(loaded, None))
    while not served.server.started:
        time.sleep(0.05)
    yield served
    served.end()


@pytest.fixture
def slowly(loaded: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each token take a twentieth of a second."""
    engine = loaded["winner"].engine
    step = engine._step

    def slow(most: int) -> None:
        time.sleep(0.05)
        step(most)

    monkeypatch.setattr(engine, "_step", slow)


def is_closed(connection: socket.socket, seconds: float = 10) -> bool:
    """Return whether the server closes the connection within so many seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_half_a_request_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 1.0)
    with socket.create_connection(served.address) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert is_closed(half)
    with socket.create_connection(served.address) as second:  # after a whole request
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in second.recv(1000)
        second.sendall(b"GET /heal")
        assert is_closed(second)


@pytest.mark.usefixtures("slowly")
def test_an_answer_that_takes_longer_than_a_head_may_is_given(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 0.0)
    body = {**MESSAGE, "max_tokens": 40, "logit_bias": {str(n): -100 for n in (1021, 1023)}}
    began = time.monotonic()
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert time.monotonic() - began > 1.2  # meanwhile the server checked its connections


def test_a_connection_that_is_used_again_and_again_stays(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server looks once a second, each time between two requests."""
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 1.5)
    with socket.create_connection(served.address) as kept:
        kept.settimeout(10)
        for _ in range(8):
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += kept.recv(1000) or b"closed: ok"
            assert b"200 OK" in answer
            time.sleep(0.5)


def test_a_request_whose_body_never_arrives_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.5)
    with socket.create_connection(served.address) as slow:
        slow.sendall(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        slow.settimeout(10)
        assert b"408" in slow.recv(1000).splitlines()[0]


def test_many_bodies_at_once_are_bounded_and_then_forgotten(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_MOST_BYTES_AT_ONCE", 1500)
    head = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-length: 2000\r\n\r\n"
    with (
        socket.create_connection(served.address) as first,
        socket.create_connection(served.address) as second,
    ):
        first.sendall(head + b"{" * 1000)
        time.sleep(0.3)
        second.sendall(head + b"{" * 1000)
        second.settimeout(10)
        answer = second.recv(1000).lower()
        assert b"503" in answer.splitlines()[0]
        assert b"retry-after: 1" in answer
    time.sleep(0.3)
    answer = httpx.post(
        f"{served.url}/generate", json={"prompt": "Hi", "max_tokens": 1, "user": "a" * 1200}
    )
    assert answer.status_code == 200


def test_silent_connections_are_closed_if_there_are_too_many(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_MOST_CONNECTIONS", 3)
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 60.0)
    silent = [socket.create_connection(served.address) for _ in range(6)]
    until = time.monotonic() + 20
    while (closed := sum(is_closed(one, seconds=0.05) for one in silent)) < 3:
        assert time.monotonic() < until
    assert closed == 3
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    for one in silent:
        one.close()


def test_open_paths_read_no_body(served: Served) -> None:
    with socket.create_connection(served.address) as asking:
        asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n")
        asking.settimeout(10)
        assert b"200 OK" in asking.recv(1000)


@pytest.mark.usefixtures("slowly")
def test_at_the_end_what_waits_gets_503_and_what_streams_is_told(
    loaded: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_GRACE_SECONDS", 0.5)
    served = Served(api.create_app(loaded, None))
    # The tokens that end an answer are forbidden, so that it goes on.
    endless = {**MESSAGE, "max_tokens": 150, "logit_bias": {str(n): -100 for n in (1021, 1023)}}
    waited: list[httpx.Response] = []

    def wait() -> None:
        waited.append(httpx.post(f"{served.url}/v1/chat/completions", json=endless, timeout=60))

    with httpx.stream(
        "POST", f"{served.url}/v1/chat/completions", json={**endless, "stream": True}, timeout=60
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        waiting = threading.Thread(target=wait)
        waiting.start()
        while not len(loaded["winner"].engine._waiting):
            time.sleep(0.02)
        served.end()
        events = [line.removeprefix("data: ") for line in lines if line]
    waiting.join(30)
    assert json.loads(events[-1])["error"]["message"] == "the server is shutting down; try again"
    (refused,) = waited
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
