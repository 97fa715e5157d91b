"""The defaults of a request come from the model's own generation_config.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import GenerationConfig

from dpo_train import sample
from serve import api, models
from serve.errors import ModelError
from serve.generation_defaults import GenerationDefaults, read_defaults
from serve.openai_requests import ChatRequest

MESSAGES: Any = [{"role": "user", "content": "Is it true that goldfish forget everything?"}]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({}, GenerationDefaults()),
        ({"do_sample": False, "max_new_tokens": 96}, GenerationDefaults(0.0, max_new_tokens=96)),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1,
             "repetition_penalty": 1.05, "eos_token_id": [1, 2]},
            GenerationDefaults(0.7, 0.8, 20, 0.1, 1.05),
        ),
        ({"temperature": 0.6}, GenerationDefaults(0.6)),
    ],
)  # fmt: skip
def test_the_file_is_read_and_openais_defaults_hold_where_it_says_nothing(
    file: dict[str, Any], expected: GenerationDefaults
) -> None:
    assert read_defaults(GenerationConfig(**file)) == expected


@pytest.mark.parametrize(
    "file", [{"repetition_penalty": 1e-40}, {"temperature": -1.0}, {"temperature": float("nan")}]
)
def test_a_generation_config_that_sampling_can_not_use_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"generation_config.json: {next(iter(file))} is .*none`"):
        read_defaults(GenerationConfig(do_sample=True, **file))


def test_the_settings_of_a_request_override_the_defaults() -> None:
    defaults = GenerationDefaults(0.0, 0.8, 20, 0.1, 1.05)
    request = ChatRequest(
        messages=MESSAGES, temperature=1, top_p=1, top_k=0, min_p=0, repetition_penalty=1
    )
    given = request.sampling(9, 0, defaults)
    assert (given.temperature, given.top_p, given.top_k) == (1, 1, 0)
    assert (given.min_p, given.repetition_penalty) == (0, 1)
    left_out = ChatRequest(messages=MESSAGES).sampling(9, 0, defaults)
    assert (left_out.temperature, left_out.top_p, left_out.top_k) == (0.0, 0.8, 20)
    assert (left_out.min_p, left_out.repetition_penalty) == (0.1, 1.05)


@pytest.mark.parametrize("reads", [True, False])
def test_a_server_uses_the_models_own_settings_unless_it_is_told_not_to(
    tmp_path: Path, reads: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sample.MODEL, folder)
    file = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": 1023, "pad_token_id": 1021}
    (folder / "generation_config.json").write_text(json.dumps(file))
    loaded = models.load([f"winner={folder}"], 2, 128, 9, reads)
    app = api.create_app(loaded, None)
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        answers = [
            client.post("/v1/chat/completions", json={"messages": MESSAGES, **given}).json()
            for given in ({"seed": 1}, {"seed": 2}, {"max_tokens": 9, "temperature": 0})
        ]
    loaded["winner"].engine.close()
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    tokens = [answer["usage"]["completion_tokens"] for answer in answers]
    assert tokens[2] == 9
    if reads:
        assert tokens[:2] == [5, 5]
        assert texts[0] == texts[1]
        assert texts[2].startswith(texts[0])
    else:
        assert texts[0] != texts[1]
