"""The JSON schema for editors is made from the configuration and is as strict."""

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.config_fields import field_paths
from tests.conftest import ROOT
from tune.config import json_schema
from tune.config.load import load_search
from tune.config.searchable import searchable_fields
from tune.run_folder.yaml_file import search_content

SCHEMA = json_schema.search_schema()
SEARCHES = sorted((ROOT / "searches").glob("*.yaml"))
GOOD: dict[str, Any] = {"trials": 2, "space": {"dpo.beta": {"uniform": [0.1, 0.2]}}}


def accepts(**changes: Any) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid({**GOOD, **changes}))


def test_the_file_is_what_the_configuration_says() -> None:
    """If this fails, type `dpo-tune schema > tune/config/search.schema.json`."""
    assert json_schema.FILE.read_text() == json_schema.as_text()
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_every_search_to_copy_names_it_and_keeps_to_it(path: Path) -> None:
    text = path.read_text()
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE)
    assert (path.parent / named).resolve() == json_schema.FILE
    content = YAML(typ="safe", pure=True).load(text)
    assert list(Draft202012Validator(SCHEMA).iter_errors(content)) == []
    saved = search_content(load_search(path))
    assert list(Draft202012Validator(SCHEMA).iter_errors(saved)) == []


def test_space_may_hold_every_path_that_can_be_searched_and_no_other() -> None:
    paths = SCHEMA["properties"]["space"]["properties"]
    assert set(paths) == set(dict(searchable_fields()))
    assert {"optim.learning_rate", "dpo.loss", "lora", "lora.r", "seed"} <= set(paths)
    assert not set(paths) & {"model.id", "data.id", "trainer", "optim", "trials"}
    assert set(paths) < set(field_paths(TrainConfig))
    assert not accepts(space={"optim.lr": {"uniform": [0, 1]}})
    assert not accepts(space={})


def test_an_axis_has_one_kind_that_suits_its_field() -> None:
    assert accepts(space={"dpo.beta": {"log_uniform": [0.1, 1]}, "seed": {"int": [0, 3]}})
    assert accepts(space={"lora": {"choice": [None, {"r": 8}]}})
    assert accepts(space={"dpo.loss": {"choice": ["sigmoid", ["sigmoid", "sft"]]}})
    assert not accepts(space={"dpo.beta": {"uniform": [0.1, 1], "choice": [1]}})
    assert not accepts(space={"dpo.beta": {}})
    assert not accepts(space={"dpo.beta": [0.1, 1]})
    assert not accepts(space={"optim.batch_size": {"uniform": [4, 8]}})
    assert not accepts(space={"optim.schedule": {"choice": ["linaer"]}})


def test_points_are_a_list_or_an_earlier_search() -> None:
    assert accepts(points=[{"dpo.beta": 0.1}])
    assert accepts(points={"from": "runs/earlier", "best": 3})
    assert not accepts(points={"run": "runs/earlier"})
    assert not accepts(points=[{"beta": 0.1}])


def test_metrics_are_known_by_name() -> None:
    assert accepts(objective=["eval/accuracy", "eval/drift"], stopping={"metric": "eval/nll"})
    assert accepts(constraints={"eval/drift": {"at_most": 1}})
    assert not accepts(objective="eval/acuracy")
    assert not accepts(stopping={"metric": "eval/acuracy"})
    assert not accepts(constraints={"drift": {"at_most": 1}})
