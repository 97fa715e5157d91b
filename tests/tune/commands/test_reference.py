"""docs/reference.md: made from the configuration classes, and complete."""

import pytest

from dpo_train.config_fields import field_paths
from dpo_train.errors import InputError
from serve.app import ReplicaOptions
from tests.conftest import ROOT
from tune.__main__ import main
from tune.commands.reference import as_markdown
from tune.config.outputs import ServeConfig
from tune.config.schema import SearchConfig

PAGE = ROOT / "docs" / "reference.md"


def test_the_page_is_what_the_classes_say() -> None:
    """If it fails: `dpo-tune schema --markdown > docs/reference.md`."""
    assert PAGE.read_text() == as_markdown()


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown()


def test_every_field_has_a_row_under_its_heading() -> None:
    heading, rows = "", set()
    for line in as_markdown().splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ") + "."
        elif line.startswith("## "):
            heading = ""
        elif line.startswith("| `"):
            rows.add(heading + line.split("`")[1])
    assert set(field_paths(SearchConfig)) <= rows
    assert {"space.PATH.int", "constraints.METRIC.at_most", "slots"} <= rows
    assert {f"Replicas on Ray Serve.{name}" for name in ("gpus", "max_replicas")} <= rows
    assert set(ReplicaOptions.model_fields) <= {row.split(".")[-1] for row in rows}


def test_types_defaults_and_names_in_trl_are_shown() -> None:
    lines = as_markdown().splitlines()
    assert any(
        line.startswith("| `epochs` | `num_train_epochs` | a whole number of at least 1 | `1` |")
        for line in lines
    )
    (loss,) = [line for line in lines if line.startswith("| `loss` |")]
    assert "`sigmoid_norm`" in loss  # all of them, however many there are
    assert "one of these" in loss


def test_a_field_without_a_docstring_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServeConfig.model_fields["port"], "description", None)
    with pytest.raises(InputError, match=r"tune\.config\.outputs\.ServeConfig\.port has no doc"):
        as_markdown()
