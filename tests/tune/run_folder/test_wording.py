"""Points and durations are written in a readable form."""

from typing import Any

import pytest

from tune.run_folder.wording import describe, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00031649, "0.000316"),
        (None, "null"),
        (True, "true"),
        (32, "32"),
        ("cosine", "cosine"),
        ({"alpha": 32, "r": 8}, "alpha=32 r=8"),
        ({}, "{}"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_a_value_is_written_as_in_yaml_and_a_part_by_its_fields(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_a_point_shows_only_the_last_part_of_each_path() -> None:
    point = {"optim.learning_rate": 1e-3, "lora": {"alpha": 32}, "lora.r": 8, "dpo.beta": None}
    assert describe(point) == "learning_rate=0.001 alpha=32 r=8 beta=null"
    assert describe({"lora": None}) == "lora=null"
