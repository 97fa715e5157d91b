"""OpenAI's own client, in its strict mode, talks to the HTTP application over the sample model."""

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from dpo_train import sample
from serve import api, models
from serve.models import ServedModel
from tests.helpers.app_server import Server

KEY = "a key that is long enough"
ASK = {"role": "user", "content": "Is it true that goldfish forget everything in seconds?"}


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, ServedModel]]:
    loaded = models.load([f"winner={sample.MODEL}"], slots=3, context=256, max_waiting=4)
    yield loaded
    loaded["winner"].engine.close()


@pytest.fixture(scope="module")
def server(loaded: dict[str, ServedModel]) -> Iterator[Server]:
    with Server(api.create_app(loaded, None, max_body_bytes=20_000)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0,
        _strict_response_validation=True,
    ) as client:  # fmt: skip
        yield client


def post(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def test_a_chat_is_answered_whole_and_in_parts_alike(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "winner", "messages": [ASK], "temperature": 0}
    whole = client.chat.completions.create(**settings, max_tokens=30)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        **settings, max_completion_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == text
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] in ("stop", "length")
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert parts[1].choices[0].delta.content != text  # the text came in pieces


def test_completions_stops_choices_and_logprobs(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "winner", "temperature": 0, "max_tokens": 12}
    plain = client.completions.create(prompt="Lisbon is", logprobs=2, **settings)
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(logprobs.token_logprobs or []) == 12
    assert max((logprobs.top_logprobs or [])[0].values()) == pytest.approx(
        logprobs.token_logprobs[0]
    )
    word = plain.choices[0].text.split()[1]
    stopped = client.completions.create(prompt="Lisbon is", stop=[word], **settings)
    assert stopped.choices[0].finish_reason == "stop"
    assert word not in stopped.choices[0].text
    assert plain.choices[0].text.startswith(stopped.choices[0].text)
    three = client.chat.completions.create(
        model="winner", messages=[ASK], n=3, seed=5, temperature=1.5, max_tokens=10,
        logprobs=True, top_logprobs=3,
    )  # fmt: skip
    assert len({choice.message.content for choice in three.choices}) > 1
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    content = three.choices[0].logprobs.content
    assert len(content[0].top_logprobs) == 3
    again = client.chat.completions.create(
        model="winner", messages=[ASK], n=3, seed=5, temperature=1.5, max_tokens=10
    )
    assert [c.message.content for c in again.choices] == [c.message.content for c in three.choices]


def test_models_are_listed_and_content_may_come_in_parts(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["winner"]
    assert client.models.retrieve("winner").object == "model"
    first = client.chat.completions.create(model="winner", messages=[ASK], max_tokens=3)
    again: Any = [{"role": "developer", "content": "Be short."}, ASK, first.choices[0].message,
                  {**ASK, "name": "jo"}]  # fmt: skip
    assert client.chat.completions.create(model="winner", messages=again, max_tokens=3).choices
    parts: Any = [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]
    answer = client.chat.completions.create(
        model="winner", messages=[{"role": "user", "content": parts}], max_tokens=3
    )
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_curl_gets_a_text(server: Server) -> None:
    answer = post(server, "/generate", {"prompt": "Hi", "max_tokens": 5, "temperature": 0}).json()
    assert set(answer) == {"text", "model", "finish_reason"}
    assert httpx.get(f"{server.url}/healthz").text == "ok"


CHAT: dict[str, Any] = {"model": "winner", "messages": [ASK], "max_tokens": 3}


@pytest.mark.parametrize(
    ("body", "status", "message", "param"),
    [
        ({**CHAT, "tools": [{"type": "function"}]}, 400, "tools is not supported by", "tools"),
        ({**CHAT, "temperature": 3}, 400, "less than or equal to 2", "temperature"),
        ({**CHAT, "messages": []}, 400, "messages: ", "messages"),
        ({**CHAT, "model": "gpt"}, 404, "no model 'gpt'; there are: winner", "model"),
        ({**CHAT, "max_tokens": 4000}, 400, "more than the context of 256", "max_tokens"),
        ({**CHAT, "messages": [{**ASK, "content": "a " * 900}]}, 400, "more than the", None),
        ({**CHAT, "stop": [""]}, 400, "stop: at most 4 texts", None),
        ({**CHAT, "stream_options": {"include_usage": True}}, 400, "only with stream: true", None),
        ({**CHAT, "top_logprobs": 2}, 400, "only with logprobs: true", None),
        ({**CHAT, "max_completion_tokens": 4}, 400, "give one of them", None),
        ({**CHAT, "seed": 2**64}, 400, "seed: ", "seed"),
        ({**CHAT, "n": 16}, 400, "16 answers in one request; at most 7", "n"),
    ],
)
def test_what_is_wrong_is_refused_by_name_in_openais_shape(
    server: Server, body: dict[str, Any], status: int, message: str, param: str | None
) -> None:
    answer = post(server, "/v1/chat/completions", body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["param"] == param


def test_broken_bodies_are_refused(server: Server) -> None:
    url = f"{server.url}/v1/chat/completions"
    broken = httpx.post(url, content=b'{"model": ', headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["message"]) == (400, "the body is not JSON")
    large = post(server, "/v1/chat/completions", {**CHAT, "user": "x" * 30_000})
    assert large.status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    assert httpx.post(url, content=parts()).status_code == 413


def test_a_stream_is_read_though_it_is_cut_in_the_middle_of_a_character(server: Server) -> None:
    body = {**CHAT, "stream": True, "max_tokens": 20, "seed": 3}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
        raw = b"".join(answer.iter_raw(chunk_size=7))
    events = raw.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_a_client_that_disconnects_frees_its_slot(
    server: Server, loaded: dict[str, ServedModel]
) -> None:
    engine = loaded["winner"].engine
    long = {**CHAT, "max_tokens": 200, "temperature": 2, "stop": ["\0"], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=long) as answer:
        next(answer.iter_raw())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/chat/completions", json={**long, "stream": False}, timeout=0.01
        )
    deadline = time.monotonic() + 20
    while engine._decoding and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine._decoding


def test_a_full_queue_answers_503_and_when_to_come_again(server: Server) -> None:
    many = {**CHAT, "n": 7, "max_tokens": 200, "temperature": 2}
    with ThreadPoolExecutor(4) as clients:
        pending = [clients.submit(post, server, "/v1/chat/completions", many) for _ in range(4)]
        answers = [answer.result() for answer in pending]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert {answer.status_code for answer in answers} == {200, 503}


def test_a_request_that_takes_too_long_ends(server: Server, loaded: dict[str, ServedModel]) -> None:
    with Server(api.create_app(loaded, None, seconds=0.15)) as hurried:
        body = {**CHAT, "max_tokens": 240 - 40, "temperature": 2, "n": 3}
        slow = post(hurried, "/v1/chat/completions", body)
        assert slow.status_code == 200
        assert slow.json()["usage"]["completion_tokens"] < 600
    engine: Any = loaded["winner"].engine
    long = {**CHAT, "n": 3, "max_tokens": 200, "temperature": 2, "stop": "\0"}
    with (
        Server(api.create_app(loaded, None, seconds=0.01)) as late,
        ThreadPoolExecutor(2) as clients,
    ):
        # The requests come one after the other, so that the engine is still busy on a slow machine.
        taken = [clients.submit(post, server, "/v1/chat/completions", long) for _ in range(2)]
        while len(engine._decoding) < 3:
            time.sleep(0.001)
        assert post(late, "/v1/chat/completions", CHAT).status_code == 504
        assert {answer.result().status_code for answer in taken} == {200}


def test_without_a_key_only_this_machine_is_answered(server: Server) -> None:
    for headers in (
        {"host": "evil.example"},
        {"x-forwarded-for": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
        {"x-real-ip": "203.0.113.9"},
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
    ):
        refused = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"
    assert httpx.get(f"{server.url}/healthz", headers={"host": "pod.example"}).status_code == 200
    app = api.create_app({}, None)
    with TestClient(app, client=("203.0.113.9", 1), base_url="http://localhost") as far:
        assert far.get("/v1/models").status_code == 403


def test_with_a_key_every_client_must_bring_it(loaded: dict[str, ServedModel]) -> None:
    with Server(api.create_app(loaded, KEY)) as server:
        url = f"{server.url}/v1/models"
        basic = base64.b64encode(f"any:{KEY}".encode()).decode()
        for given in (f"Bearer {KEY}", f"Basic {basic}"):
            answer = httpx.get(url, headers={"authorization": given, "host": "far.example"})
            assert answer.status_code == 200
        for given in ("", "Bearer wrong", "Bearer", "Basic !", "Bearer schlüssel"):
            answer = httpx.get(url, headers={"authorization": given.encode()} if given else {})
            assert answer.status_code == 401, given
            assert "Basic" in answer.headers["www-authenticate"]
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        assert httpx.get(f"{server.url}/readyz").status_code == 200
