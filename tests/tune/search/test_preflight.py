"""A search is refused before it begins if packages that it needs are not installed."""

from typing import Any

import pytest

from dpo_train import extras
from dpo_train.errors import InputError
from tune.config.schema import SearchConfig
from tune.search import preflight


def search(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"name": "x", "trials": 2, "lora": {}} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
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
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    preflight.refuse_impossible(search(**changes))
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=message):
        preflight.refuse_impossible(search(**changes))


def test_a_batch_must_be_shared_out_among_the_gpus_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    axis = {"optim.batch_size": {"int": [3, 6]}}
    for changes, size in (({}, 8), ({"space": axis, "optim": {"batch_size": 3}}, 4)):
        with pytest.raises(InputError, match=f"{size} pairs can.t be split evenly among the 3"):
            preflight.refuse_impossible(search(resources={"gpus": 3}, **changes))
    preflight.refuse_impossible(search(resources={"gpus": 3}, optim={"batch_size": 6}))


def test_missing_gpus_are_reported_before_batches_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="resources.gpus: a trial wants 512, this machine has"):
        preflight.refuse_impossible(search(resources={"gpus": 512}))
