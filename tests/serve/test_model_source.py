"""What is asked to be served is read and refused before anything is loaded."""

from pathlib import Path

import pytest

from serve.model_source import ModelError, describe_memory, read_sources


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("./none", "./none: no such folder"),
        (str(Path(__file__).parent), "neither config.json nor adapter_config.json"),
        ("s3://bucket/runs/x/winner", "a URL; bring the folder here first"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(place: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        describe_memory([place], 1, 128)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two models of one name"):
        read_sources(["a=sample", "a=sample"])


def test_a_checkpoint_of_two_models_is_counted_once() -> None:
    (line,) = describe_memory(["a=sample", "b=sample"], 16, 2048)
    assert "for 16 answers at once of" in line
