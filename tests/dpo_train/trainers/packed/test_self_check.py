"""A packed engine trains a model as PEFT does, or refuses it by name before it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed import forward, self_check
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.trial import PackedTrial
from tests.helpers.small_models import SMALL, save

pytestmark = pytest.mark.slow

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
TRAINED: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=16),
    "phi3": transformers.Phi3Config(**SMALL, pad_token_id=0),
    "olmo2": transformers.Olmo2Config(**SMALL),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, head_dim=16),
    "granite": transformers.GraniteConfig(
        **SMALL, attention_multiplier=0.25, logits_scaling=8.0, residual_multiplier=0.22
    ),
    "cohere": transformers.CohereConfig(**SMALL, logit_scale=0.0625),
    "starcoder2": transformers.Starcoder2Config(
        **SMALL, sliding_window=None, residual_dropout=0.1, embedding_dropout=0.1
    ),
}
REFUSED: dict[str, tuple[transformers.PretrainedConfig, str]] = {
    "experts": (
        transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
        "does not train mlp.experts, mlp.gate as PEFT does",
    ),
    "a sliding window in the mask": (
        transformers.Qwen2MoeConfig(
            **SMALL, **EXPERTS, num_experts=4, shared_expert_intermediate_size=16
        ),
        "its layers can't run packed",
    ),
    "gpt2, whose layers are transposed": (
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=512),
        "its layers can't run packed",
    ),
    "opt": (
        transformers.OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=512, word_embed_proj_dim=32,
        ),
        "its layers can't run packed",
    ),
    "logits that are capped": (
        transformers.Gemma3TextConfig(**SMALL, head_dim=16, final_logit_softcapping=30.0),
        "final_logit_softcapping bends its logits",
    ),
    "attention that is capped": (transformers.Gemma2Config(**SMALL, head_dim=16), "attention is"),
    "stablelm": (transformers.StableLmConfig(**SMALL), "don't hand options on"),
    "nemotron": (transformers.NemotronConfig(**SMALL), "don't hand options on"),
    "deepseek": (
        transformers.DeepseekV3Config(
            **SMALL, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
            v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
            n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1,
        ),
        "packed can't train this model",
    ),
}  # fmt: skip

Open = Callable[..., PackedEngine]


@pytest.fixture
def engine(small_config: TrainConfig, tmp_path: Path) -> Any:
    """Open an engine over a model of random weights, and let a trial join."""
    opened: list[PackedEngine] = []

    def open_engine(config: Any, **lora: Any) -> PackedEngine:
        folder = tmp_path / "model"
        if not folder.exists():
            save(config, folder)
        trial = override(
            small_config,
            {"model.id": str(folder), "trainer": "packed", "lora": {"r": 8, **lora},
             "data.limit": 12},
        )  # fmt: skip
        prepared = reference.plan(trial, data.load_pairs(trial.data), tmp_path / "data", "cpu")
        opened.append(PackedEngine(trial.model, prepared, "cpu"))
        opened[-1].join(trial)
        return opened[-1]

    yield open_engine
    for each in opened:
        each.close()


@pytest.mark.parametrize("name", TRAINED)
def test_a_dense_model_passes(engine: Open, name: str) -> None:
    engine(TRAINED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_packed_would_compute_differently_is_refused(engine: Open, name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(InputError, match="type `trainer: trl`") as caught:
        engine(config)
    assert message in str(caught.value)


def test_a_refused_trial_is_refused_again_and_does_not_affect_others(
    engine: Open, small_config: TrainConfig
) -> None:
    """An engine outlives a refusal, so its next session must be refused as well."""
    pack = engine(TRAINED["llama"], target_modules=["q_proj"])

    def join(*targets: str) -> PackedTrial:
        lora = {"r": 4, "target_modules": targets}
        return pack.join(override(small_config, {"trainer": "packed", "lora": lora}))

    trial = join("q_proj")
    pack.step([trial])
    for _ in range(2):
        with pytest.raises(InputError, match=r"does not train model\.embed_tokens as PEFT does"):
            join("embed_tokens", "v_proj")
        with pytest.raises(InputError, match="no layer 'query'"):
            join("query")
    before = trial.weights.clone()
    pack.step([trial])
    changed = {layer.name: b for (layer, _, b) in trial.layout.views(trial.weights - before)}
    assert all(bool(b.any()) for b in changed.values())
    assert {name.rpartition(".")[2] for name in changed} == {"q_proj"}


def test_every_session_over_a_mixture_of_experts_is_refused(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    """All sessions of an engine's process share the engine, whichever came first."""
    folder = save(REFUSED["experts"][0], tmp_path / "model")
    trial = override(small_config, {"model.id": str(folder), "trainer": "packed", "lora": {}})
    prepared = reference.plan(trial, data.load_pairs(trial.data), tmp_path / "data", "cpu")
    for seed in range(3):
        with pytest.raises(
            InputError, match=r"does not train mlp\.experts, mlp\.gate as PEFT does"
        ):
            open_session(override(trial, {"seed": seed}), prepared, "cpu")


def test_attention_alone_of_a_mixture_of_experts_passes_without_a_loss_of_the_router(
    engine: Open,
) -> None:
    experts = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
    without = transformers.MixtralConfig(**experts, router_aux_loss_coef=0.0)
    engine(without, target_modules=["q_proj", "v_proj"])


def test_a_routers_loss_is_refused_as_trl_would_add_it(engine: Open) -> None:
    """TRL requests the router's scores itself, whatever `output_router_logits` is."""
    with pytest.raises(InputError, match="its router has a loss of its own"):
        engine(REFUSED["experts"][0], target_modules=["q_proj", "v_proj"])


def test_embeddings_among_the_targets_are_refused(engine: Open) -> None:
    with pytest.raises(InputError, match=r"does not train model\.embed_tokens as PEFT does"):
        engine(TRAINED["llama"], target_modules=["embed_tokens", "q_proj"])


def test_missing_target_modules_are_named(engine: Open) -> None:
    with pytest.raises(InputError, match="no layer 'query'; its linear layers are q_proj, k_proj"):
        engine(TRAINED["llama"], target_modules=["query", "q_proj"])


def scale_gradients(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    from dpo_train.trainers.packed.linear import _Adapted

    right = _Adapted.backward

    def wrong(ctx: Any, gradient: Any) -> Any:
        return right(ctx, gradient * factor)

    monkeypatch.setattr(_Adapted, "backward", staticmethod(wrong))


def test_gradients_that_differ_are_refused(engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probs may be right while the backward is wrong."""
    scale_gradients(monkeypatch, 1.01)
    with pytest.raises(InputError, match=r"the gradients of self_attn.* differ from PEFT's"):
        engine(TRAINED["llama"])


@pytest.mark.parametrize("factor", [0.25, 2**-0.5, 2**0.5])
def test_rounding_does_not_hide_a_forgotten_scale(
    engine: Open, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """The pass runs under bfloat16 autocast, as on a GPU."""
    monkeypatch.setitem(forward.AUTOCAST, "cpu", torch.bfloat16)
    engine(TRAINED["llama"])
    scale_gradients(monkeypatch, factor)
    with pytest.raises(InputError, match=r"the gradients of .* differ from PEFT's"):
        engine(TRAINED["llama"], target_modules=["q_proj", "o_proj"])


def test_it_is_checked_once_for_a_base_and_its_targets(
    engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(self_check, "check", lambda *given: checked.append(given))
    engine(TRAINED["llama"]).close()
    engine(TRAINED["llama"], alpha=4).close()
    assert len(checked) == 1
    engine(TRAINED["llama"], target_modules=["q_proj"])
    assert len(checked) == 2


def test_the_base_is_left_as_it_was(engine: Open) -> None:
    opened = engine(TRAINED["llama"])
    assert not any("lora" in name for name, _ in opened.base.named_modules())
    assert not any(weight.requires_grad for weight in opened.base.parameters())
    assert all(stack.adapters is None for stack in opened._stacks.values())
