"""Options that only some trainers support are refused with the others."""

from typing import Any

import pytest

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from tune.config.checks import check
from tune.config.schema import SearchConfig


def search(**changes: Any) -> SearchConfig:
    return check(SearchConfig.model_validate({"name": "x", "trials": 2, "lora": {}} | changes))


def test_weights_in_4_bits_are_not_shared_out() -> None:
    quantized = {"quantization": "nf4"}
    assert search(model=quantized, resources={"gpus": 2}).model.quantization == "nf4"
    with pytest.raises(InputError, match=r"weights in nf4 can't be split among GPUs; type `"):
        search(model=quantized, resources={"gpus": 2, "sharded": True})


def test_a_paged_optimizer_needs_gpus() -> None:
    axis = {"optim.name": {"choice": ["adamw", "paged_adamw"]}}
    assert search(space=axis, resources={"gpus": 1}).optimizers == {"adamw", "paged_adamw"}
    with pytest.raises(InputError, match=r"optim.name: paged_adamw works only on a GPU"):
        search(space=axis)


def test_moments_in_8_bits_are_not_shared_out() -> None:
    with pytest.raises(InputError, match=r"optim.name: adamw_8bit can't be split among GPUs; type"):
        search(optim={"name": "adamw_8bit"}, resources={"gpus": 2, "sharded": True})


def test_packed_trials_have_an_attention_of_their_own() -> None:
    with pytest.raises(InputError, match=r"`trainer: packed` computes attention in its own way"):
        override(TrainConfig(), {"trainer": "packed", "lora": {}, "model.attention": "eager"})


def test_a_simulated_trial_has_no_attention() -> None:
    with pytest.raises(InputError, match=r"model.attention: `trainer: simulated` loads no model"):
        override(TrainConfig(), {"trainer": "simulated", "model.attention": "eager"})
