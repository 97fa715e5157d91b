"""Dropout is off in every trainer, whatever a model calls it."""

import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from tests.helpers.small_models import SMALL, save
from tests.helpers.training import curve

LARGE_WEIGHTS = {**SMALL, "initializer_range": 0.2}
"""Weights with which dropout would change the loss visibly."""
MODELS: dict[str, transformers.PretrainedConfig] = {
    "granite": transformers.GraniteConfig(**LARGE_WEIGHTS, attention_multiplier=0.25),
    "starcoder2": transformers.Starcoder2Config(
        **LARGE_WEIGHTS, sliding_window=None, residual_dropout=0.1, embedding_dropout=0.1
    ),
    "opt": transformers.OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, init_std=0.2,
        max_position_embeddings=512, word_embed_proj_dim=32, dropout=0.1, attention_dropout=0.1,
        layerdrop=0.5,
    ),
    "falcon": transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, attention_dropout=0.1,
        hidden_dropout=0.1, initializer_range=0.2,
    ),
    "mixtral": transformers.MixtralConfig(
        **LARGE_WEIGHTS, router_jitter_noise=0.3, router_aux_loss_coef=0.0
    ),
}  # fmt: skip


@pytest.mark.slow
# PEFT warns about experts by itself.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
@pytest.mark.parametrize("lora", [None, {"r": 2}])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_before_anything_is_learnt_is_the_logarithm_of_two(
    small_config: TrainConfig, tmp_path: Path, name: str, lora: Any
) -> None:
    folder = save(MODELS[name], tmp_path / "model")
    config = override(
        small_config,
        {"model.id": str(folder), "lora": lora, "optim.learning_rate": 1e-12, "data.limit": 12,
         "optim.epochs": 1},
    )  # fmt: skip
    prepared = reference.plan(config, data.load_pairs(config.data), tmp_path / "data", "cpu")
    for report in curve(config, prepared):
        assert report["train/loss"] == pytest.approx(math.log(2), abs=1e-4)
