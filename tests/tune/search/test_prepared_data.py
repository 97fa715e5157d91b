"""All workers of a search can find its base by its name."""

import shutil
from pathlib import Path

import pytest

from dpo_train import sample
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import create_run
from tune.run_folder.yaml_file import write_yaml
from tune.search.prepared_data import plan_prepared_data
from tune.search.resume import refuse_other_search


def test_a_folder_named_from_here_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of an existing cluster have another working directory than the driver."""
    shutil.copytree(sample.MODEL, tmp_path / "my model")
    monkeypatch.chdir(tmp_path)
    typed = SearchConfig.model_validate(
        {"name": "x", "trials": 1, "model": {"id": "my model"}, "data": {"limit": 30}}
    )
    planned, prepared = plan_prepared_data(typed, print)
    assert planned.model.id == str(tmp_path / "my model")
    assert f'"id": "{tmp_path}/my model"' in (prepared / "plan.json").read_text()
    # With the same YAML the search goes on.
    folder = RunFolder.at(tmp_path / "runs" / "x")
    folder.path.mkdir()
    write_yaml(folder.search_yaml, planned)
    create_run(folder, prepared, "cpu")
    refuse_other_search(folder, typed)
