"""A packed trial begins like PEFT, at the reference, and leaves the base unchanged."""

import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from dpo_train import model, sample
from dpo_train.config import LoraConfig, TrainConfig
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layout
from dpo_train.trainers.packed.engine import PackedEngine
from tests.helpers.packed_trial import config


def test_before_its_first_step_a_trial_is_the_reference(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    pack = PackedEngine(small_config.model, small_prepared, "cpu")
    try:
        trial = pack.join(config(small_config, lora={"r": 2}))
        neighbour = pack.join(config(small_config, lora={"r": 4}, optim__batch_size=12))
        while not neighbour.step:
            pack.step([neighbour])
        values, trained = pack.evaluate([trial, neighbour])
        assert values is not None
        assert trained is not None
        means = {name: float(np.mean(each)) for name, each in values.items()}
        assert means["accuracy"] == 0.5
        assert (means["drift"], means["margin"], means["chosen_shift"]) == (0, 0, 0)
        assert means["loss"] == math.log(2)
        assert np.mean(trained["drift"]) > 0
        pack.step([trial, neighbour])
        assert float(trial._losses[0]) == pytest.approx(math.log(2), abs=1e-7)
    finally:
        pack.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_adapter_is_pefts_to_the_bit(dtype: torch.dtype) -> None:
    base = AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype=dtype)
    lora = LoraConfig(r=3)
    layout = Layout(adapters.adapted_layers(base, lora), lora.r)
    drawn = adapters.initial(layout, 5, dtype)
    set_seed(5)
    wrapped = peft.get_peft_model(base, model.peft_config(lora))
    matrices = dict(wrapped.named_parameters())
    for layer, a, b in layout.views(drawn):
        name = f"{adapters.PREFIX}{layer.name}.lora_{{}}.default.weight"
        assert torch.equal(a, matrices[name.format("A")].float())
        assert torch.equal(b.T, matrices[name.format("B")].float())


def test_the_base_gets_back_the_attention_that_it_had(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    base = model.load_base(small_config.model, "cpu", small_prepared).model
    base.set_attn_implementation("eager")
    try:
        PackedEngine(small_config.model, small_prepared, "cpu").close()
        assert base.config._attn_implementation == "eager"
    finally:
        model.forget_base()
