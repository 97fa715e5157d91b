"""A base whose forward differs from what the reference pass and the trainers assume is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dpo_train import data, model_settings, reference
from dpo_train.config import DataConfig, ModelConfig, TrainConfig
from dpo_train.errors import InputError
from dpo_train.reference_pass.forward_checks import check_forward
from dpo_train.scoring import logps
from tests.helpers.preference_data import lines, texts
from tests.helpers.small_models import SMALL, save

WIDE: dict[str, Any] = {**SMALL, "vocab_size": 260, "initializer_range": 0.3, "pad_token_id": 0}
"""Weights that are large enough for logits as large as a trained model's."""
IDS = torch.randint(1, 260, (70,), generator=torch.Generator().manual_seed(0)).tolist()

HEAD = (
    "^model.id: TRL's fused LM head does not compute this model's logits .* nats per token.; give"
)
RANDOM = "^model.id: this model draws random numbers .* nats per token.*; give another model"

REFUSED: dict[str, tuple[Callable[[], transformers.PretrainedConfig], str]] = {
    "capped by a setting of another name": (
        lambda: transformers.RecurrentGemmaConfig(
            **WIDE, lru_width=32, block_types=["recurrent", "attention"], logits_soft_cap=3.0
        ),
        HEAD,
    ),
    "experts drawn at random": (
        lambda: transformers.PhimoeConfig(
            **WIDE, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1
        ),
        RANDOM,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_base_is_refused_before_its_reference_is_computed(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    base, rows = save(make(), tmp_path / "base"), lines(texts)(tmp_path)
    config = TrainConfig(model=ModelConfig(id=str(base)), data=DataConfig(id=str(rows)))
    folder = reference.plan(config, data.load_pairs(config.data), tmp_path / "data", "cpu")
    with pytest.raises(InputError, match=message) as refused:
        reference.prepare(folder)
    assert "\n" not in str(refused.value)


def made(config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model_settings.switch_off_dropout(base)
    return base


ACCEPTED: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "plain": lambda: transformers.LlamaConfig(**WIDE),
    "capped": lambda: transformers.Gemma2Config(
        **WIDE, head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=3.0
    ),
    "multiplied": lambda: transformers.CohereConfig(**WIDE, logit_scale=0.25),
    "divided": lambda: transformers.GraniteConfig(**WIDE, logits_scaling=4.0),
    "jitter that is off": lambda: transformers.MixtralConfig(
        **WIDE, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_trls_head_knows_is_accepted(kind: str, dtype: torch.dtype) -> None:
    base = made(ACCEPTED[kind](), dtype)
    logps.forward_pass(base, "cpu")
    check_forward(base, IDS)
    assert not base.training


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.001), (torch.bfloat16, 1.1)])
def test_logits_that_are_slightly_others_are_refused(dtype: torch.dtype, factor: float) -> None:
    base = made(transformers.LlamaConfig(**WIDE), dtype)
    own = base.forward

    def forward(*args: Any, **options: Any) -> Any:
        output = own(*args, **options)
        output.logits *= factor
        return output

    base.forward = forward
    logps.forward_pass(base, "cpu")
    with pytest.raises(InputError, match=HEAD):
        check_forward(base, IDS)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_random_draws_in_training_are_refused_if_they_change_a_result(share: float) -> None:
    base = made(transformers.LlamaConfig(**WIDE))

    def noise(layer: Any, _: Any, output: Any) -> Any:
        return output + share * torch.rand_like(output) if layer.training else output

    base.model.layers[0].mlp.register_forward_hook(noise)
    logps.forward_pass(base, "cpu")
    if share:
        with pytest.raises(InputError, match=RANDOM):
            check_forward(base, IDS)
    else:
        check_forward(base, IDS)
    assert not base.training


def test_what_training_computes_otherwise_but_never_at_random_is_accepted() -> None:
    """A stock trainer trains such a model in the same way."""
    base = made(transformers.LlamaConfig(**WIDE))
    base.model.layers[0].mlp.register_forward_hook(
        lambda layer, _, output: output * 1.1 if layer.training else output
    )
    logps.forward_pass(base, "cpu")
    check_forward(base, IDS)
