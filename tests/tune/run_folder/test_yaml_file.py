"""`search.yaml` holds the settings of a search and can be read again without a difference."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.run_folder.yaml_file import write_yaml

MANY = """
trainer: simulated
simulated: {noise: 0}
trials: 4
data: {columns: {system: null}}
lora: {r: 4}
space:
  lora: {choice: [null, {r: 8}]}
  optim.batch_size: {int: [2, 8], when: {lora: not null}}
points: [{lora: null}]
objective: [eval/accuracy, eval/drift]
stopping: {metric: eval/accuracy}
constraints: {eval/drift: {at_most: 1.5}}
hub: {repo: someone/it}
"""


def written(folder: Path, config: SearchConfig) -> str:
    write_yaml(folder / "search.yaml", config)
    return (folder / "search.yaml").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "searches").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_search_is_read_again_as_it_was(tmp_path: Path, path: Path) -> None:
    config = load_search(path)
    written(tmp_path, config)
    assert load_search(tmp_path / "search.yaml") == config


def test_nulls_that_mean_something_stay(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(MANY)
    config = load_search(tmp_path / "x.yaml")
    text = written(tmp_path, config)
    assert load_search(tmp_path / "search.yaml") == config
    assert config.data.columns.system is None
    for kept in ("system: null", "simulated:", "noise: 0.0", "hub:", "int: [2, 8]"):
        assert kept in text


def test_unset_and_unused_fields_are_left_out(tmp_path: Path) -> None:
    config = load_search(ROOT / "searches" / "quickstart.yaml")
    text = written(tmp_path, config)
    for noise in ("null", "simulated", "trl:", "hub:", "serve:", "0.16666", "when", "{}", "[]"):
        assert noise not in text
    assert "test_fraction: 0.1667" in text
    assert "log_uniform: [1e-05, 0.0006]" in text
    assert len(text.splitlines()) < 80
