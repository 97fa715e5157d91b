"""The messages for keys and values that a configuration does not allow."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from dpo_train.config import TrainConfig
from dpo_train.config_base import Part, parse
from dpo_train.config_faults import one_of, shown, unknown_path
from dpo_train.config_fields import Allowed, field_paths, spelled, words
from dpo_train.config_names import FIELD_ALIASES
from dpo_train.errors import InputError
from tune.config.schema import SearchConfig

PATHS = field_paths(TrainConfig)


class Inner(Part):
    size: int = Field(3, ge=1, lt=9)
    names: list[str] = ["a"]


class Outer(Part):
    inner: Inner = Inner()
    either: Literal["a", "b"] | None = None
    named: Annotated[str, Allowed("a name without spaces")] = Field("x", pattern=r"^\S+$")
    several: dict[str, Inner] = {}
    needed: float


def error(content: dict[str, object]) -> str:
    with pytest.raises(InputError) as caught:
        parse(Outer, content, {}, "x.yaml")
    return str(caught.value).removeprefix("x.yaml: ")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("optim.lr", "did you mean 'optim.learning_rate'?"),
        ("lr", "did you mean 'optim.learning_rate'?"),
        ("bs", "did you mean 'optim.batch_size'?"),
        ("beta", "did you mean 'dpo.beta'?"),
        ("num_train_epochs", "type `optim.epochs`"),
        ("per_device_train_batch_size", "type `optim.batch_size` and `optim.micro_batch_size`"),
        ("optm.learning_rate", "did you mean 'optim.learning_rate'?"),
        ("optim.betas", "did you mean 'optim.beta2' or 'optim.beta1'?"),
        ("optim.warmup_ratio", "did you mean 'optim.warmup_pairs'?"),
    ],
)
def test_a_path_from_another_program_is_answered_with_our_path(path: str, meant: str) -> None:
    assert unknown_path(path, PATHS) == f"unknown path {path!r}; {meant}"


def test_every_name_from_another_program_maps_to_a_field_and_is_no_field() -> None:
    known = field_paths(SearchConfig)
    assert set(FIELD_ALIASES) <= set(known)
    names = [name for others in FIELD_ALIASES.values() for name in others]
    assert len(names) == len(set(names))
    assert set(names).isdisjoint(known)


def test_a_name_like_no_other_is_answered_with_five_of_those_allowed() -> None:
    answer = unknown_path("optim.zzz", PATHS)
    assert answer.endswith(
        "allowed here: name, learning_rate, batch_size, micro_batch_size, "
        "activation_checkpointing and 8 more"
    )


def test_few_values_are_listed_and_of_many_the_nearest() -> None:
    assert one_of("c", ["a", "b"]) == "must be one of a, b, not 'c'"
    many = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust"]
    assert one_of("sigmiod", many) == "there is no 'sigmiod'; did you mean 'sigmoid'?"
    assert one_of(3, many) == (
        "there is no 3; allowed are sigmoid, hinge, ipo, exo_pair, nca_pair and 1 more"
    )


def test_a_value_is_answered_with_what_is_allowed_and_what_to_type() -> None:
    good = {"needed": 1}
    assert error({}) == "needed is missing; it must be a number"
    assert error({"needed": None}) == "needed is null; it must be a number"
    assert error({**good, "inner": {"size": 9}}) == (
        "inner.size: must be a whole number of at least 1 and below 9, not 9; type `size: 3`"
    )
    assert error({**good, "inner": {"size": True}}).startswith("inner.size: must be a whole number")
    assert error({**good, "inner": 3}) == (
        "inner: must be a mapping of size, names, not 3; type `inner: {size: 3}`"
    )
    assert error({**good, "inner": {"names": ["a", 1]}}) == "inner.names.1: must be a text, not 1"
    assert error({**good, "either": "c"}) == "either: must be one of a, b, not 'c'"
    assert error({**good, "either": 3}) == "either: must be one of a, b or null, not 3"
    assert error({**good, "named": "a b"}) == (
        "named: must be a name without spaces, not 'a b'; type `named: x`"
    )


def test_an_error_inside_a_mapping_of_sections_is_found() -> None:
    content = {"needed": 1, "several": {"a.b": {"size": 0}}}
    assert error(content).startswith("several.a.b.size: must be a whole number of at least 1")
    content = {"needed": 1, "several": {"a.b": {"sice": 3}}}
    assert error(content) == "several.a.b: unknown key 'sice'; did you mean 'size'?"


def test_more_faults_are_counted_and_those_of_one_field_are_one() -> None:
    assert error({"either": 3, "inner": {"size": 0}}).endswith(" (and 2 more)")
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, {"dpo": {"loss": ["sigmoid", "sigmiod"]}}, {}, "x")
    assert str(caught.value) == "x: dpo.loss.1: there is no 'sigmiod'; did you mean 'sigmoid'?"


def test_values_are_spelled_as_yaml_writes_them_and_cut_to_a_line() -> None:
    assert spelled({"a": [None, True, 1e-5, "x"]}) == "{a: [null, true, 1e-5, x]}"
    assert len(shown("long " * 30)) == 58
    assert words(int | None, (Field(ge=1),)) == "a whole number of at least 1 or null"
