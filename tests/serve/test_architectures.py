"""Tiny models of many architectures answer as in transformers, or are refused by name."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from dpo_train import sample
from serve.engine import Chunk, GenerationRequest
from serve.errors import ModelError
from serve.model_source import describe_memory
from serve.sampling_params import SamplingParams
from serve.slot_engine import SlotEngine
from tests.helpers.small_models import SMALL

WIDE: dict[str, Any] = {"initializer_range": 0.3}
"""Weights so large that every part of the attention changes the answers."""
LLAMA = {**SMALL, **WIDE, "num_attention_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "sliding_window": None}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **WIDE}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **WIDE}
WINDOW = {"sliding_window": 8}
FULL = {"layer_types": ["full_attention"] * 2}
Config = Callable[[], hf.PretrainedConfig]

SERVED: dict[str, Config] = {
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "qwen2": lambda: hf.Qwen2Config(**LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**LLAMA, sliding_window=None),
    "gemma3_without_windows": lambda: hf.Gemma3TextConfig(**LLAMA, head_dim=8, **FULL),
    "phi3": lambda: hf.Phi3Config(**LLAMA, pad_token_id=2),
    "granite": lambda: hf.GraniteConfig(**LLAMA),
    "starcoder2": lambda: hf.Starcoder2Config(**LLAMA, sliding_window=None),
    "olmo2": lambda: hf.Olmo2Config(**LLAMA),
    "smollm3": lambda: hf.SmolLM3Config(**LLAMA, pad_token_id=2),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZE, intermediate_size=64, max_position_embeddings=256),
    "opt": lambda: hf.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, init_std=0.3,
    ),
    "mixtral": lambda: hf.MixtralConfig(**LLAMA, **EXPERTS, num_local_experts=4),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **LLAMA, num_experts_per_tok=2, num_experts=4, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "phimoe": lambda: hf.PhimoeConfig(**LLAMA, **EXPERTS, num_local_experts=4),
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **{**LLAMA, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1,
    ),
    "cohere2_without_windows": lambda: hf.Cohere2Config(**LLAMA, **FULL),
}  # fmt: skip

NONE_BUT_ITS_OWN = "it accepts no other attention than its own"
NOT_PASSED_ON = "its layers do not pass the server's cache to their attention"
WINDOWS = "some of its layers see only a window of the tokens"
REFUSED: dict[str, tuple[Config, str]] = {
    "mistral": (lambda: hf.MistralConfig(**LLAMA, **WINDOW), WINDOWS),
    "gemma2": (lambda: hf.Gemma2Config(**LLAMA, head_dim=8), WINDOWS),
    "gemma2_without_windows": (
        lambda: hf.Gemma2Config(**LLAMA, head_dim=8, **FULL), "its attention has soft-capped scores"
    ),
    "gemma3": (lambda: hf.Gemma3TextConfig(**LLAMA, head_dim=8, **WINDOW), WINDOWS),
    "cohere2": (lambda: hf.Cohere2Config(**LLAMA, **WINDOW), WINDOWS),
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **LLAMA, head_dim=8, intermediate_size_mlp=64, num_local_experts=2,
            attention_chunk_size=8,
        ),
        WINDOWS,
    ),
    # Its attention sees all tokens, but transformers' cache keeps only the last ones.
    "moshi": (lambda: hf.MoshiConfig(**LLAMA, ffn_dim=64, head_dim=8, **WINDOW), WINDOWS),
    "gpt_oss": (
        lambda: hf.GptOssConfig(
            **LLAMA, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_scaling=None,
            **FULL,
        ),
        "its attention has sinks",
    ),
    "gpt_neo": (
        lambda: hf.GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=4, window_size=8,
            attention_types=[[["global", "local"], 1]], **WIDE,
        ),
        NONE_BUT_ITS_OWN,
    ),
    "gptj": (lambda: hf.GPTJConfig(**GPT, rotary_dim=4), NONE_BUT_ITS_OWN),
    "falcon": (lambda: hf.FalconConfig(**SIZE, alibi=False), NONE_BUT_ITS_OWN),
    "falcon_alibi": (lambda: hf.FalconConfig(**SIZE, alibi=True), NONE_BUT_ITS_OWN),
    "bloom": (lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4), NONE_BUT_ITS_OWN),
    "mpt": (lambda: hf.MptConfig(d_model=32, n_layers=2, n_heads=4), NONE_BUT_ITS_OWN),
    "stablelm": (lambda: hf.StableLmConfig(**LLAMA), NOT_PASSED_ON),
    "nemotron": (lambda: hf.NemotronConfig(**LLAMA), NOT_PASSED_ON),
    "mamba": (
        lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),
        "some of its layers have a state in place of attention",
    ),
    "recurrent_gemma": (
        lambda: hf.RecurrentGemmaConfig(
            **{**LLAMA, "num_hidden_layers": 3, "num_key_value_heads": 1}, head_dim=8,
            lru_width=32, attention_window_size=8,
        ),
        WINDOWS,
    ),
    # The reason for the difference of these is unknown here; only the log-probs differ.
    "diffllama": (
        lambda: hf.DiffLlamaConfig(**{**LLAMA, "attention_dropout": 0}),
        "its answers differ from transformers' by",
    ),
    "bart": (
        lambda: hf.BartConfig(
            d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3,
        ),
        "its answers differ from transformers' by",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return hf.AutoTokenizer.from_pretrained(sample.MODEL)


def build(config: hf.PretrainedConfig, tokenizer: Any) -> Any:
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
    config.pad_token_id = 2
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).eval()


def submit(engine: SlotEngine, prompt: list[int]) -> tuple[GenerationRequest, Any]:
    sent: queue.Queue[Chunk] = queue.Queue()
    request = GenerationRequest(prompt, SamplingParams(10, 0.0), sent.put, is_streamed=False)
    engine.submit(request)
    return request, sent


def generated(model: Any, prompt: list[int]) -> list[int]:
    output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=10)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", SERVED)
def test_greedy_answers_are_those_of_transformers(name: str, tokenizer: Any) -> None:
    model = build(SERVED[name](), tokenizer)
    draw = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(len(tokenizer), (length,), generator=draw).tolist()
        for length in (30, 3, 70, 11, 21)
    ]
    expected = [generated(model, prompt) for prompt in prompts]
    engine = SlotEngine(model, tokenizer, slots=3, context=128, max_waiting=9)
    try:
        alone, sent = submit(engine, prompts[0])
        sent.get(timeout=60)
        together = [submit(engine, prompt) for prompt in prompts]
        for _, sent in together:
            assert sent.get(timeout=60).finish_reason in ("stop", "length")
    finally:
        engine.close()
    assert alone.output_ids == expected[0]
    assert [request.output_ids for request, _ in together] == expected
    assert generated(model, prompts[0]) == expected[0]  # the engine restored its model


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_architectures_are_refused_by_name(name: str, tokenizer: Any) -> None:
    config, reason = REFUSED[name]
    model = build(config(), tokenizer)
    with pytest.raises(ModelError) as refused:
        SlotEngine(model, tokenizer, slots=3, context=128, max_waiting=9)
    line = str(refused.value)
    assert f"{type(model).__name__} can't be served here: {reason}" in line
    assert line.endswith("; vLLM may serve it: deploy/serve_llm.yaml says how")
    assert "\n" not in line


@pytest.mark.parametrize("name", [*SERVED, *REFUSED])
def test_every_configuration_is_described_before_it_is_loaded(name: str, tmp_path: Path) -> None:
    config = SERVED[name]() if name in SERVED else REFUSED[name][0]()
    config.save_pretrained(tmp_path)
    (line,) = describe_memory([str(tmp_path)], 16, 128)
    assert "for 16 answers at once of 128 tokens" in line
