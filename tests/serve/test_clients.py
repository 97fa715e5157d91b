"""Requests as real clients send them, with fields that have no effect.

`recorded_requests.jsonl` holds bodies and headers that openai 3.54.0, langchain-openai 1.7.4 and
litellm 1.110.2 sent to a server that wrote them down, in November 2026.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from starlette.testclient import TestClient

from dpo_train import sample
from serve import api, models

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "recorded_requests.jsonl").read_text().splitlines()
]
ASK = {"role": "user", "content": "Do bats see?"}
CHAT: dict[str, Any] = {"messages": [ASK], "max_tokens": 3}
CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    loaded = models.load([f"winner={sample.MODEL}"], slots=4, context=512, max_waiting=9)
    app = api.create_app(loaded, None)
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        yield client
    loaded["winner"].engine.close()


@pytest.mark.parametrize("request_", RECORDED, ids=lambda r: f"{r['client']} {r['path']}")
def test_requests_of_real_clients_are_answered(
    client: TestClient, request_: dict[str, Any]
) -> None:
    path, body, headers = (request_[name] for name in ("path", "body", "headers"))
    answer = client.post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        (ChatCompletion if path == CHATS else Completion).model_validate(answer.json(), strict=True)


NEUTRAL: dict[str, Any] = {
    "tools": [], "functions": [], "tool_choice": "none", "function_call": "none",
    "response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "n": 1,
    "stream": False, "stream_options": {"include_usage": False}, "logprobs": False,
    "top_logprobs": 0, "audio": None, "prediction": None, "reasoning_effort": None,
    "verbosity": None, "web_search_options": None, "temperature": None, "max_completion_tokens": 3,
}  # fmt: skip
IGNORED: dict[str, Any] = {
    "metadata": {"run": "1"}, "store": True, "user": "jo", "parallel_tool_calls": True,
    "service_tier": "flex", "safety_identifier": "jo", "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
}  # fmt: skip


NULL_INSIDE: dict[str, Any] = {"stream_options": {"include_usage": None}}


@pytest.mark.parametrize("given", [NEUTRAL, dict.fromkeys(NEUTRAL), NULL_INSIDE, IGNORED])
def test_fields_that_change_nothing_are_taken(client: TestClient, given: dict[str, Any]) -> None:
    answer = client.post(CHATS, json={**CHAT, **given})
    assert answer.status_code == 200, answer.text
    plain = client.post(CHATS, json=CHAT)
    assert answer.json()["choices"] == plain.json()["choices"]


def test_neutral_fields_of_the_other_routes_are_taken(client: TestClient) -> None:
    neutral = {"suffix": None, "echo": False, "best_of": 1, "logprobs": None, "n": 1}
    body = {"prompt": ["Bats"], "max_tokens": 3, **neutral}
    assert client.post(TEXTS, json=body).status_code == 200
    assert client.post(TEXTS, json={**body, "suffix": "", "logprobs": False}).status_code == 200
    plain = {"prompt": "Bats", "max_tokens": 3, "n": 1, "stream": False, "user": "jo"}
    assert client.post("/generate", json=plain).status_code == 200


def test_an_answer_is_taken_back_as_the_client_writes_it_out(client: TestClient) -> None:
    first = ChatCompletion.model_validate(client.post(CHATS, json=CHAT).json())
    written = first.choices[0].message.model_dump()
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} < set(written)
    for back in (written, {**written, "annotations": [], "tool_calls": []}):
        again = {**CHAT, "messages": [ASK, back, {**ASK, "name": "jo"}]}
        answer = client.post(CHATS, json=again)
        assert answer.status_code == 200, answer.text


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        (CHATS, {"tools": [{"type": "function"}]}, "tools is not supported by this", "tools"),
        (CHATS, {"tool_choice": "required"}, "tool_choice is not supported", "tool_choice"),
        (CHATS, {"response_format": {"type": "json_object"}}, "response_format is not", None),
        (CHATS, {"modalities": ["text", "audio"]}, "modalities is not supported", "modalities"),
        (CHATS, {"reasoning_effort": "low"}, "reasoning_effort is not", "reasoning_effort"),
        (CHATS, {"max_token": 3}, "max_token is not supported", "max_token"),
        (CHATS, {"messages": [{**ASK, "tool_calls": [CALL]}]}, "messages.0.tool_calls is", None),
        (CHATS, {"messages": [{**ASK, "refusal": "No."}]}, "messages.0.refusal is not", None),
        (CHATS, {"messages": [{"role": "tool", "content": "1"}]}, "messages.0.role: ", None),
        (CHATS, {"messages": [{"role": "user", "content": None}]}, "messages.0.content: ", None),
        *(
            (CHATS, {"messages": [{"role": "user", "content": [{"type": kind, kind: {}}]}]},
             f"messages.0.content: parts of the type {kind} are not supported; send text parts",
             "messages.0.content")
            for kind in ("image_url", "input_audio", "file", "refusal")
        ),
        (CHATS, {"logit_bias": {"5000": 1}}, "no token 5000; the vocabulary has 1024", None),
        (CHATS, {"logit_bias": {"5": 101}}, "logit_bias.5: ", None),
        (CHATS, {"repetition_penalty": 1e-300}, "repetition_penalty: ", None),  # infinite
        (CHATS, {"stop": 5}, "stop: Input should be a valid string", "stop"),
        (TEXTS, {"prompt": [5, 6]}, "prompt: token ids are not supported; send a text", "prompt"),
        (TEXTS, {"prompt": [[5, 6]]}, "prompt: token ids are not supported", "prompt"),
        (TEXTS, {"prompt": "Hi", "suffix": "x"}, "suffix is not supported", "suffix"),
        (TEXTS, {"prompt": "Hi", "echo": True}, "echo is not supported", "echo"),
        (TEXTS, {"prompt": "Hi", "best_of": 2}, "best_of is not supported", "best_of"),
        ("/generate", {"prompt": "Hi", "n": 2}, "n is not supported", "n"),
        ("/generate", {"prompt": "Hi", "n": True}, "n is not supported", "n"),
        ("/generate", {"prompt": "Hi", "logprobs": 0}, "logprobs is not supported", "logprobs"),
    ],
)  # fmt: skip
def test_what_would_change_an_answer_is_refused_by_name(
    client: TestClient, path: str, body: dict[str, Any], message: str, param: str | None
) -> None:
    answer = client.post(path, json={**CHAT, **body} if path == CHATS else body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert "Value error" not in error["message"]
    assert param in (None, error["param"])


def test_settings_beside_openais_and_a_bias_are_taken(client: TestClient) -> None:
    chat = {**CHAT, "temperature": 2, "max_tokens": 12, "seed": 1}
    greedy = client.post(CHATS, json={**chat, "temperature": 0}).json()["choices"]
    for narrow in ({"top_k": 1}, {"min_p": 1}):
        assert client.post(CHATS, json={**chat, **narrow}).json()["choices"] == greedy
    for wide in ({}, {"top_k": -1, "min_p": 0, "repetition_penalty": 1}):
        assert client.post(CHATS, json={**chat, **wide}).json()["choices"] != greedy
    token = sample_token(client, {"temperature": 0})
    other = sample_token(client, {"temperature": 0, "logit_bias": {str(token): -100}})
    assert other != token
    assert sample_token(client, {"temperature": 2, "logit_bias": {str(token): 100}}) == token


def sample_token(client: TestClient, settings: dict[str, Any]) -> int:
    """Return the first token of an answer. In the sample model a text identifies its token."""
    body = {**CHAT, "max_tokens": 1, "logprobs": True, **settings}
    (token,) = client.post(CHATS, json=body).json()["choices"][0]["logprobs"]["content"]
    loaded: Any = models.AutoTokenizer.from_pretrained(sample.MODEL)
    (found,) = (id_ for id_ in range(len(loaded)) if loaded.decode([id_]) == token["token"])
    return int(found)


def test_the_strict_client_reads_extra_settings(client: TestClient) -> None:
    with openai.OpenAI(
        base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=client,
        _strict_response_validation=True,
    ) as strict:  # fmt: skip
        answer = strict.chat.completions.create(
            model="winner", messages=[ASK], max_tokens=3, extra_body={"top_k": 5}
        )
    assert answer.choices[0].message.content
