"""A search that begins with the best points of an earlier one."""

from pathlib import Path

import pytest

from dpo_train.errors import InputError
from tests.helpers.driver import Driver
from tune.config.load import load_search
from tune.search.warm_start import with_earlier_points

YAML = """
trainer: simulated
trials: 3
space: {optim.learning_rate: {log_uniform: [1e-5, %s]}}
points: %s
"""


@pytest.fixture
def earlier(tmp_path: Path) -> list[float]:
    """Make a finished search and return its learning rates, the best first."""
    driver = Driver(tmp_path / "old")
    trials = [driver.start() for _ in range(4)]
    for number, trial in enumerate(trials):
        driver.finish(trial, 512, 0.6 + number / 10)
    return [trial.config["task"].point["optim.learning_rate"] for trial in reversed(trials)]


def load(tmp_path: Path, points: str, high: float = 1e-2) -> list[float]:
    yaml = tmp_path / "new.yaml"
    yaml.write_text(YAML % (high, points))
    config = with_earlier_points(load_search(yaml))
    return [point["optim.learning_rate"] for point in config.given_points]


def test_the_best_points_come_first(tmp_path: Path, earlier: list[float]) -> None:
    assert load(tmp_path, f"{{from: {tmp_path / 'old'}, best: 2}}") == earlier[:2]
    assert load(tmp_path, f"{{from: {tmp_path / 'old'}}}") == earlier


def test_points_outside_the_new_space_are_passed_over(tmp_path: Path, earlier: list[float]) -> None:
    high = sorted(earlier)[1]
    narrow = load(tmp_path, f"{{from: {tmp_path / 'old'}, best: 9}}", high)
    assert narrow == [rate for rate in earlier if rate <= high]
    with pytest.raises(InputError, match="none of the 4 evaluated trials of .* lies in this"):
        load(tmp_path, f"{{from: {tmp_path / 'old'}}}", 1.00001e-5)


@pytest.mark.parametrize(
    "points", ["{best: 2}", "{from: old, best: 0}", "{from: old, bets: 2}", "3"]
)
def test_what_is_not_understood_is_refused(tmp_path: Path, points: str) -> None:
    with pytest.raises(InputError, match="or `{from: runs/earlier, best: 5}` for the best"):
        load(tmp_path, points)


def test_a_search_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run 'runs/none'"):
        load(tmp_path, "{from: runs/none}")


def test_an_invalid_point_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"points: point 1 is 3; type it like `{dpo.beta: 0.1}`"):
        load(tmp_path, "[{optim.learning_rate: 1e-3}, 3]")


def test_a_grid_may_have_points_of_an_earlier_search_on_top(
    tmp_path: Path, earlier: list[float]
) -> None:
    yaml = tmp_path / "new.yaml"
    grid = YAML.replace("log_uniform: [1e-5, %s]", "choice: [1e-9, %s]") + "sampler: {name: grid}\n"
    rate = earlier[0]
    yaml.write_text(grid % (rate, f"{{from: {tmp_path / 'old'}}}"))
    with pytest.raises(InputError, match="trials: 3 is more than the 2 points"):
        with_earlier_points(load_search(yaml))
    assert load_search(yaml, {"trials": 2}).total_trials == 2


def test_points_from_is_no_path_of_its_own(tmp_path: Path) -> None:
    yaml = tmp_path / "new.yaml"
    yaml.write_text(YAML % (1e-2, "[]"))
    with pytest.raises(InputError, match="unknown path 'points.from'"):
        load_search(yaml, {"points.from": "old"})


def test_reading_the_yaml_opens_no_earlier_run(tmp_path: Path) -> None:
    yaml = tmp_path / "new.yaml"
    yaml.write_text(YAML % (1e-2, "{from: runs/none}"))
    assert load_search(yaml).given_points == []
