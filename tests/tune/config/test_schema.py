"""The configuration of a search: what it refuses, and its defaults."""

from pathlib import Path

import pytest

from dpo_train.config import TrainConfig, load_train
from dpo_train.config_base import field_paths, override, parse, parse_overrides, read_yaml
from dpo_train.errors import InputError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(text)
    return path


def test_yaml_is_read_by_the_rules_of_1_2(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "rate: 1e-5\nmode: off\n"))
    assert content == {"rate": 1e-5, "mode": "off"}


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'line 2: found duplicate key "seed"'):
        read_yaml(write(tmp_path, "seed: 1\nseed: 2\n"))


@pytest.mark.parametrize("text", ["", "- a\n", "just words", "1: 2\n"])
def test_what_is_no_mapping_of_names_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="must be a mapping"):
        read_yaml(write(tmp_path, text))


def test_an_unknown_key_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {learnin_rate: 1e-5}\n")
    with pytest.raises(
        InputError, match=r"unknown key 'optim.learnin_rate'; did you mean 'optim.learn"
    ):
        load_train(path)


def test_an_override_reaches_its_field_and_an_unknown_path_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\n")
    assert load_train(path, {"optim.epochs": 4}).optim.epochs == 4
    with pytest.raises(InputError, match="unknown key 'optim.epoch'; did you mean 'optim.epochs'"):
        load_train(path, {"optim.epoch": 4})


def test_a_path_below_null_creates_the_section() -> None:
    config = override(TrainConfig(), {"lora.r": 4})
    assert config.lora is not None
    assert config.lora.r == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"dtype": "bfloat16"}}, "bfloat16 weights can't be trained in full"),
        ({"optim": {"batch_size": 128}, "eval_every_pairs": 64}, "larger than eval_every_pairs 64"),
        ({"eval_at_pairs": [192, 4]}, "larger than the first evaluation, at 4 pairs"),
        ({"dpo": {"loss": "exo_pair"}}, "exo_pair needs label_smoothing above 0"),
        ({"dpo": {"loss": ["sigmoid", "sft"], "loss_weights": [1]}}, "1 numbers for 2 losses"),
        ({"data": {"eval_split": "validation"}}, "name both or neither"),
        ({"data": {"chars": [300, 30]}}, "swap the two"),
        ({"lora": {"target_modules": ["lm_head"]}}, "would never be trained"),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate"),
        ({"optim": {"learning_rate": "fast"}}, "not 'fast'"),
    ],
)
def test_a_configuration_that_can_not_work_is_refused_in_one_line(
    content: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, content, {}, "trial.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frozen_base_of_a_lora_may_be_bfloat16() -> None:
    assert parse(TrainConfig, {"model": {"dtype": "bfloat16"}, "lora": {}}, {}, "x").lora


def test_every_field_has_a_docstring() -> None:
    models = [TrainConfig, *{model for model in field_paths(TrainConfig).values() if model}]
    bare = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_a_value_on_the_command_line_is_yaml() -> None:
    given = parse_overrides(["a.b=1e-4", "c = [30, 300]"])
    assert given == {"a.b": 1e-4, "c": [30, 300]}
    with pytest.raises(InputError, match="not a YAML value"):
        parse_overrides(["a=[1, "])
