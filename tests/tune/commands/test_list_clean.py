"""`dpo-tune list` describes each run."""

from pathlib import Path

import pytest

from tests.helpers.driver import Driver
from tune.commands.list_clean import print_stored, stored
from tune.run_folder.driver_lease import only_driver
from tune.run_folder.paths import RunFolder
from tune.run_folder.yaml_file import write_yaml


def test_a_run_has_its_state_its_trials_and_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path / "x")
    folder = RunFolder.at(tmp_path / "x")
    write_yaml(folder.search_yaml, driver.config)
    driver.finish(driver.start(), 512, 0.8)
    driver.report(driver.start(), 64, 0.7)
    (found,) = stored(tmp_path)
    assert (found.state, found.trials) == ("interrupted", "1/4")
    assert (found.objective, found.best) == ("eval/accuracy", 0.8)
    assert found.at is not None
    with only_driver(folder):
        assert stored(tmp_path)[0].state == "running"
    capsys.readouterr()
    print_stored(tmp_path)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["name", "last"]
    assert row.split()[-3:-1] == ["0.800", "eval/accuracy"]


def test_a_run_that_can_not_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("good", "torn"):
        driver = Driver(tmp_path / name)
        write_yaml(RunFolder.at(tmp_path / name).search_yaml, driver.config)
    (tmp_path / "torn" / "search.yaml").write_text("trials: [")
    assert {each.name: each.state for each in stored(tmp_path)} == {
        "good": "interrupted",
        "torn": "unreadable",
    }
