"""Ray's own models read deploy/serve_llm.yaml. They are imported without vLLM."""

import copy
import importlib.util
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from ray.serve._private.config import AutoscalingConfig, DeploymentConfig
from ray.serve.schema import ServeDeploySchema
from ruamel.yaml import YAML

from tests.conftest import ROOT

CONFIG = ROOT / "deploy" / "serve_llm.yaml"
CONTENT = YAML(typ="safe", pure=True).load(CONFIG.read_text())
VLLM_ARGUMENTS = {"max_model_len"}
"""Arguments of vLLM's engine that the file uses. Only vLLM itself knows all of them."""
OTHER_FOLDERS = ["/mnt/shared/adapter", "your-name/adapter", "file:///adapter", "hf://adapter"]


@pytest.fixture(scope="module")
def llm_config() -> type[BaseModel]:
    """Return Ray's LLMConfig. Its import changes the root logger, which is restored here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    root.handlers[:] = handlers
    root.setLevel(level)
    return LLMConfig


def check(content: dict[str, Any], llm_config: type[BaseModel]) -> None:
    """Raise ValidationError or AssertionError if Ray refuses the content or drops some of it."""
    assert ServeDeploySchema(**content).model_dump(mode="json", exclude_unset=True) == content
    (application,) = content["applications"]
    module, _, builder = application["import_path"].partition(":")
    found = importlib.util.find_spec(module)  # the module itself can't be imported without vLLM
    assert found is not None
    assert f"def {builder}(" in Path(str(found.origin)).read_text()
    assert set(application["args"]) == {"llm_configs"}
    for config in application["args"]["llm_configs"]:
        llm_config.model_validate(config)
        assert set(config["engine_kwargs"]) <= VLLM_ARGUMENTS
        deployment = config["deployment_config"]
        assert set(deployment) <= set(DeploymentConfig.model_fields)
        assert set(deployment["autoscaling_config"]) <= set(AutoscalingConfig.model_fields)


def keys(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key in nested mappings and lists."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from keys(value, (*path, index))


def test_ray_takes_the_file_as_it_is(llm_config: type[BaseModel]) -> None:
    check(CONTENT, llm_config)


@pytest.mark.parametrize("path", list(keys(CONTENT)), ids=lambda path: str(path[-1]))
def test_a_misspelt_key_is_noticed_at_every_level(
    path: tuple[Any, ...], llm_config: type[BaseModel]
) -> None:
    content = copy.deepcopy(CONTENT)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    with pytest.raises((AssertionError, ValidationError)):
        check(content, llm_config)


def test_adapters_are_loaded_only_from_the_urls_that_the_file_names(
    llm_config: type[BaseModel],
) -> None:
    schemes = re.findall(r"(\w+://)", CONFIG.read_text())
    assert schemes == ["s3://", "gs://", "abfss://", "azure://"]
    config = CONTENT["applications"][0]["args"]["llm_configs"][0]
    for scheme in schemes:
        lora = {"dynamic_lora_loading_path": f"{scheme}bucket/adapters"}
        llm_config.model_validate({**config, "lora_config": lora})
    for folder in OTHER_FOLDERS:
        with pytest.raises(ValidationError, match="Invalid lora_config"):
            llm_config.model_validate(
                {**config, "lora_config": {"dynamic_lora_loading_path": folder}}
            )
