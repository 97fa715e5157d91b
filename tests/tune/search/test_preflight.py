"""Packages that a search needs, and that are not here, are said before it begins."""

from typing import Any

import pytest

from dpo_train import extras
from dpo_train.errors import InputError
from tune.config.schema import SearchConfig
from tune.search import preflight


def search(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"name": "x", "trials": 2, "lora": {}} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sampler": {"name": "cmaes"}},
            r"sampler.name: cmaes needs cmaes; type `.* -m pip install 'dpo-tune\[samplers\]'`",
        ),
        (
            {"model": {"quantization": "int8"}},
            r"model.quantization: int8 needs bitsandbytes; type `.* 'dpo-tune\[quantized",
        ),
        (
            {"space": {"optim.name": {"choice": ["adamw", "adamw_8bit"]}}},
            r"optim.name: adamw_8bit needs bitsandbytes; type `.* 'dpo-tune\[quantized",
        ),
    ],
)
def test_a_missing_package_is_said(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    preflight.refuse_impossible(search(**changes))
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=said):
        preflight.refuse_impossible(search(**changes))
