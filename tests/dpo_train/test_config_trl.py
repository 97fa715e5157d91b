"""The fields of TRL's DPOConfig that a trial may set. TRL still has them with these defaults."""

import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
from trl import DPOTrainer

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.config_names import TRL_FIELDS
from dpo_train.config_trl import F_DIVERGENCE_LOSSES, TABLE, TrlConfig
from dpo_train.errors import InputError
from dpo_train.trainers import trl_fields
from tests.conftest import ROOT


def refused(values: dict[str, Any], message: str, **others: Any) -> None:
    with pytest.raises(InputError, match=message):
        override(TrainConfig(), {"trl": values, **others})


def test_the_table_is_that_of_the_installed_trl() -> None:
    assert TABLE.read_text() == trl_fields.table()


def test_fields_and_defaults_are_trls() -> None:
    known = json.loads(TABLE.read_text())
    assert {name: known[name] for name in TrlConfig.model_fields} == TrlConfig().model_dump()
    ours = [name for names in TRL_FIELDS.values() for name in names]
    assert len(ours) == len(set(ours))
    assert set(ours) <= set(known) - set(TrlConfig.model_fields)


def test_the_losses_that_trl_allows_are_known() -> None:
    source = inspect.getsource(DPOTrainer.__init__)
    listed = ", ".join(f'"{loss}"' for loss in F_DIVERGENCE_LOSSES)
    assert f"f_divergence_loss_types = {{{listed}}}" in source
    assert 'loss_type in {"aot", "aot_unpaired"}' in source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beta", "trl: beta can't be set here; type `dpo.beta`"),
        ("output_dir", "type `save_every_minutes` of a search"),
        ("ld_alpha", "would weight the policy's tokens but not the reference's"),
        ("torch_compile", "is not passed on to TRL, because dpo-tune does not test it"),
        ("use_weightin", "unknown key 'trl.use_weightin'; did you mean 'trl.use_weighting'"),
    ],
)
def test_other_fields_are_answered(name: str, message: str) -> None:
    refused({name: 1}, message)


def test_a_field_of_an_earlier_version_is_dropped_where_it_was_never_set() -> None:
    old = {"use_weighting": True, "pad_to_multiple_of": None}
    assert TrlConfig.model_validate(old) == TrlConfig(use_weighting=True)
    refused({"pad_to_multiple_of": 8}, "pad_to_multiple_of can't be set here")


def test_what_trl_would_refuse_while_it_trains_is_refused_at_once() -> None:
    divergence = {"f_divergence_type": "forward_kl"}
    refused(divergence, "forward_kl does not work with dpo.loss apo_", **{"dpo.loss": "apo_zero"})
    refused({"use_weighting": True}, "does not work with dpo.loss aot", **{"dpo.loss": "aot"})


@pytest.mark.parametrize("trainer", ["packed", "simulated"])
def test_other_trainers_refuse_them(trainer: str) -> None:
    refused({"use_weighting": True}, "or type `trainer: trl`", trainer=trainer, lora={})


def test_no_trl_is_imported_for_an_answer() -> None:
    code = (
        "import sys; from dpo_train.config import TrainConfig\n"
        "try: TrainConfig.model_validate({'trl': {'torch_compile': True}})\n"
        "except ValueError: print(sorted({'trl', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
