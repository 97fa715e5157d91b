"""A trial trained again from its record."""

from pathlib import Path

import pytest

from dpo_train.errors import InputError
from dpo_train.trainers.open import open_session
from tests.helpers.driver import Driver
from tune.commands.replay import replay
from tune.config.objective import Report
from tune.run_folder.step import Step
from tune.run_folder.yaml_file import write_yaml


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """Return a search whose first trial trained for two reports."""
    driver = Driver(tmp_path)
    write_yaml(tmp_path / "search.yaml", driver.config)
    task = driver.start().config["task"]
    session = open_session(driver.config.trial(task.point), tmp_path, "cpu")
    for _ in range(2):
        driver.records.report(task.trial, Step(session.advance().report, 1.0, 1.0))
    return driver


def test_the_numbers_of_a_trial_come_again(tmp_path: Path, driver: Driver) -> None:
    (record,) = driver.records.trials.values()
    seen: list[float] = []

    def watch(then: Report, now: Report) -> None:
        seen.append(now["eval/nll"] - then["eval/nll"])

    done = replay(tmp_path, record.id, watch)
    assert done.is_exact
    assert str(done) == "2 reports; all numbers are the same to the last bit"
    assert seen == [0, 0]


def test_the_largest_difference_is_named_with_its_place(tmp_path: Path, driver: Driver) -> None:
    (record,) = driver.records.trials.values()
    changed = dict(record.curve[1])
    changed["eval/drift"] += 0.25
    changed["train_seconds"] += 100
    driver.records.report(record.id, Step(changed, 1.0, 1.0))
    done = replay(tmp_path, record.id)
    assert not done.is_exact
    assert str(done) == "2 reports; the largest difference is 0.25, in eval/drift at 192 pairs"


def test_a_trial_that_can_not_be_trained_again_is_refused(tmp_path: Path, driver: Driver) -> None:
    with pytest.raises(InputError, match="has no trial 'x-009'; trials: "):
        replay(tmp_path, "x-009")
    waiting = driver.start().config["task"].name
    with pytest.raises(InputError, match="no report to compare with"):
        replay(tmp_path, waiting)
