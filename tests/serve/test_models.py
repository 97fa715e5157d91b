"""Several adapters of one base are loaded side by side and served by their names."""

import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, Phi3Config

from dpo_train import sample
from serve import api, meters, models
from serve.engine import Chunk, GenerationRequest
from serve.errors import ModelError
from serve.instruments import LocalInstruments
from serve.model_source import Checkpoint
from serve.models import ServedModel, load_weights
from serve.sampling_params import SamplingParams
from tests.helpers import small_models
from tests.helpers.small_models import SMALL

PROMPT = [5, 60, 7, 80, 9, 100, 11]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return two random adapters of the sample. Without the dot their names would be the same."""
    folders = {}
    for seed, name in enumerate(("a.b", "a_dot_b")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype=torch.float32)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False
        )
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        peft.get_peft_model(base, config).save_pretrained(folders[name])
    return folders


@pytest.fixture
def loaded(adapters: dict[str, Path]) -> Iterator[dict[str, ServedModel]]:
    loaded = models.load([str(folder) for folder in adapters.values()], 4, 128, 9)
    yield loaded
    loaded["base"].engine.close()


def alone(adapter: Path | None) -> list[int]:
    base = AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype=torch.float32).eval()
    model: Any = peft.PeftModel.from_pretrained(base, adapter).eval() if adapter else base
    output = model.generate(input_ids=torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12)
    return output[0, len(PROMPT) :].tolist()


def test_adapters_with_like_names_answer_each_as_it_does_alone(
    loaded: dict[str, ServedModel], adapters: dict[str, Path]
) -> None:
    assert list(loaded) == ["a.b", "a_dot_b", "base"]
    sent: queue.Queue[Chunk] = queue.Queue()
    requests = {}
    for name, model in loaded.items():
        requests[name] = GenerationRequest(
            PROMPT, SamplingParams(12, 0.0), sent.put, model.adapter, is_streamed=False
        )
        model.engine.submit(requests[name])
    for _ in requests:
        sent.get(timeout=60)
    answers = [request.output_ids for request in requests.values()]
    assert answers == [alone(adapters.get(name)) for name in loaded]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_an_adapter_that_answers_in_another_way_is_refused(
    adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = peft.tuners.lora.Linear._mixed_batch_forward

    def base_alone(self: Any, x: Any, *given: Any, adapter_names: list[str], **other: Any) -> Any:
        names = ["__base__"] * len(adapter_names)
        return mixed(self, x, *given, adapter_names=names, **other)

    monkeypatch.setattr(peft.tuners.lora.Linear, "_mixed_batch_forward", base_alone)
    with pytest.raises(ModelError, match="its answers with an adapter differ from transformers'"):
        models.load([str(adapters["a.b"])], 4, 128, 9)


def test_an_adapter_of_experts_is_refused_with_what_to_do(tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=None)
    base = AutoModelForCausalLM.from_pretrained(small_models.save(config, tmp_path / "base"))
    lora = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError) as refused:
        models.load([str(tmp_path / "adapter")], 4, 128, 9)
    assert str(refused.value) == (
        f"{tmp_path}/base: MixtralForCausalLM can't be served here: it does not run beside other "
        "answers with its adapter; merge it into its base first (PEFT's merge_and_unload) and give "
        "that folder"
    )


def test_each_name_of_a_checkpoint_is_counted_under_itself() -> None:
    loaded = models.load(["one=sample", "two=sample"], 2, 128, 9)
    app = api.create_app(loaded, None)
    meters.mount(app, loaded, LocalInstruments())
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        for name, tokens in (("one", 3), ("two", 5)):
            body = {"prompt": "Hi", "model": name, "max_tokens": tokens, "temperature": 0}
            assert client.post("/generate", json=body).status_code == 200
        text = client.get("/metrics").text
    loaded["one"].engine.close()
    assert 'tokens_total{kind="answer",model="one"} 3.0' in text
    assert 'tokens_total{kind="answer",model="two"} 5.0' in text


def test_a_prompt_is_answered_alike_beside_one_near_the_ropes_length(tmp_path: Path) -> None:
    """With the long factors a row of 65 tokens would change every answer of its batch."""
    config = Phi3Config(
        **{**SMALL, "initializer_range": 0.3}, original_max_position_embeddings=64, pad_token_id=2,
        rope_scaling={
            "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [20.0] * 8,
        },
    )  # fmt: skip
    folder = small_models.save(config, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = models.load([str(folder)], 4, 2048, 9)
    (model,) = loaded.values()
    assert model.engine.context == 64
    app = api.create_app(loaded, None)
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        body = {"prompt": tokenizer.decode(PROMPT) * 8, "max_tokens": 60, "temperature": 0}
        refused = client.post("/v1/completions", json=body)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "more than the context of 64" in refused.json()["error"]["message"]
    sent: queue.Queue[Chunk] = queue.Queue()
    short = GenerationRequest(PROMPT, SamplingParams(12, 0.0), sent.put, is_streamed=False)
    long = GenerationRequest(PROMPT * 8, SamplingParams(99, 0.0), sent.put, is_streamed=False)
    for request in (long, short):
        model.engine.submit(request)
    for _ in range(2):
        sent.get(timeout=60)
    model.engine.close()
    other: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    output = other.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12)
    assert short.output_ids == output[0, len(PROMPT) :].tolist()
    assert len(long.prompt_ids) + len(long.output_ids) == 64


def test_the_weights_are_the_servers_own(tmp_path: Path) -> None:
    folder = shutil.copytree(sample.MODEL, tmp_path / "model")
    weights = load_weights(Checkpoint(str(folder)), {})
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 100_000)
        file.truncate(150_000)
    for name, value in weights.state_dict().items():
        assert torch.equal(value, before[name])
