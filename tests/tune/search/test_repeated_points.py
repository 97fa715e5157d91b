"""A point is trained once in a search, unless the configuration asks for repetitions."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from dpo_train.errors import InputError
from tests.conftest import Run
from tests.helpers.driver import TWO, Driver
from tune import load_results
from tune.commands.stop_clone import clone
from tune.run_folder.assemble import SearchEnd, assemble
from tune.run_folder.folder import Run as OpenedRun
from tune.run_folder.folder import open_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import write_results
from tune.run_folder.yaml_file import write_yaml
from tune.search.resume import (
    EXHAUSTED,
    adopt,
    finished_message,
    grow,
    is_exhausted,
    is_finished,
    refuse_other_search,
)
from tune.workers.outcome import Ending, Outcome

TWELVE = {
    "optim.batch_size": {"choice": [2, 4, 8]},
    "optim.epochs": {"int": [1, 4]},
}
THREE = {"optim.epochs": {"int": [1, 3]}}


def play(driver: Driver) -> list[dict[str, Any]]:
    """Train one trial after the other until there are no more, and return their points."""
    points = []
    while hasattr(trial := driver.start(), "config"):
        points.append(trial.config["task"].point)
        driver.finish(trial, 512, 0.5 + 0.01 * len(points))
    return points


def distinct(points: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {tuple(sorted(point.items())) for point in points}


def propose_only(driver: Driver, point: dict[str, Any]) -> None:
    """Make the sampler propose only this point from now on."""
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fixed = optuna.samplers.PartialFixedSampler(point, optuna.samplers.RandomSampler(seed=0))
    driver.study._study.sampler = fixed


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "random"])
def test_every_sampler_tries_each_point_once_and_the_search_ends_with_fewer_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    driver = Driver(tmp_path, trials=16, space=TWELVE, sampler={"name": name})
    points = play(driver)
    assert (len(points), len(distinct(points))) == (12, 12)
    assert driver.searcher.stop_reason == "every point of the space tried: 12 of 16 trials"
    lines = [line for line in capsys.readouterr().out.splitlines() if "every point" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f" the search ends with 12 of 16 trials: {EXHAUSTED}")


def test_points_of_running_trials_are_not_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path, trials=5, space=THREE)
    running = [driver.start() for _ in range(3)]
    assert {trial.config["task"].point["optim.epochs"] for trial in running} == {1, 2, 3}
    assert [driver.start(), driver.start()] == [None, None]
    assert capsys.readouterr().out.count("every point of the space has been tried") == 1
    for trial in running:
        driver.finish(trial, 512, 0.9)
    assert driver.start() == "FINISHED"


@pytest.mark.parametrize(
    ("ending", "state", "value"),
    [
        ("finished", TrialState.COMPLETE, 0.9),
        ("stopped", TrialState.PRUNED, 0.9),
        ("failed", TrialState.FAIL, None),
        ("running", TrialState.FAIL, None),
    ],
)
def test_the_sampler_gets_the_known_result_of_a_repeated_point(
    tmp_path: Path, ending: str, state: TrialState, value: float | None
) -> None:
    driver = Driver(tmp_path, space=THREE)
    first = driver.start()
    if ending == "finished":
        driver.finish(first, 512, 0.9)
    elif ending == "stopped":
        driver.report(first, 64, 0.9)
        driver.end(first, Outcome(Ending.STOPPED))
    elif ending == "failed":
        driver.fail(first)
    propose_only(driver, first.config["task"].point)
    second = driver.start()
    assert second.config["task"].point != first.config["task"].point
    repeated = driver.study.trials[1:-1]
    assert len(repeated) == 5
    for trial in repeated:
        assert (trial.state, trial.params) == (state, first.config["task"].point)
        assert trial.user_attrs["trial"] == first.config["task"].name
        assert (trial.value if trial.state != TrialState.FAIL else None) == value
    last = driver.study.trials[-1]
    assert last.user_attrs["trial"] == second.config["task"].name
    assert last.params == second.config["task"].point


def test_with_two_objectives_the_sampler_is_told_both_values(tmp_path: Path) -> None:
    driver = Driver(tmp_path, space=THREE, objective=TWO)
    first = driver.start()
    driver.finish(first, 512, 0.9, drift=0.5)
    propose_only(driver, first.config["task"].point)
    driver.start()
    assert [trial.values for trial in driver.study.trials[:-1]] == [[0.9, 0.5]] * 6


def test_of_several_trials_with_a_point_the_finished_one_is_used(tmp_path: Path) -> None:
    driver = Driver(tmp_path, space=THREE, points=[{"optim.epochs": 2}] * 2)
    failed, finished = driver.start(), driver.start()
    driver.fail(failed)
    driver.finish(finished, 512, 0.9)
    propose_only(driver, finished.config["task"].point)
    driver.start()
    assert [trial.value for trial in driver.study.trials[2:-1]] == [0.9] * 5


def test_points_that_are_listed_twice_are_trained_twice(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=6, space=THREE, points=[{"optim.epochs": 2}] * 3)
    assert [point["optim.epochs"] for point in play(driver)[:3]] == [2, 2, 2]
    assert driver.searcher.stop_reason == "every point of the space tried: 5 of 6 trials"


def test_another_seed_is_another_point(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=6, space={"seed": {"int": [0, 3]}})
    assert sorted(point["seed"] for point in play(driver)) == [0, 1, 2, 3]


def test_finalists_are_trained_with_other_seeds_after_every_point_was_tried(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=9, space=THREE, confirm={"finalists": 1, "seeds": 2})
    points = play(driver)
    assert len(points) == 5
    assert [point.get("seed") for point in points] == [None, None, None, 1, 2]


def test_an_invalid_combination_is_recorded_once(tmp_path: Path) -> None:
    space = {"dpo.loss": {"choice": ["sigmoid", "exo_pair"]},
             "dpo.label_smoothing": {"choice": [0.0, 0.1]}}  # fmt: skip
    driver = Driver(tmp_path, trials=9, space=space, dpo={"label_smoothing": 0.1})
    assert len(play(driver)) == 3
    states = sorted(record.state for record in driver.records.trials.values())
    assert states == ["failed", "finished", "finished", "finished"]


def test_a_search_that_goes_on_knows_the_points_of_the_driver_that_was_killed(
    tmp_path: Path,
) -> None:
    driver = Driver(tmp_path, trials=6, space=TWELVE)
    first = [driver.start() for _ in range(6)]
    for trial in first[:4]:
        driver.finish(trial, 512, 0.9)
    again = Driver(tmp_path, trials=16, space=TWELVE)
    points = play(again)
    assert points[:2] == [trial.config["task"].point for trial in first[4:]]
    tried = [record.config for record in again.records.trials.values()]
    assert (len(tried), len(distinct(tried))) == (12, 12)


@pytest.mark.parametrize("name", ["random", "grid"])
def test_the_point_of_a_clone_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    trials = None if name == "grid" else 3
    driver = Driver(tmp_path, trials=trials, space=THREE, sampler={"name": name})
    write_yaml(tmp_path / "search.yaml", driver.config)
    first = driver.start()
    other = first.config["task"].point["optim.epochs"] % 3 + 1
    clone(tmp_path, first.config["task"].name, {"optim.epochs": other})
    cloned, third = driver.start(), driver.start()
    epochs = [trial.config["task"].point["optim.epochs"] for trial in (first, cloned, third)]
    assert sorted(epochs) == [1, 2, 3]
    assert driver.start() is None
    assert "the search ends with 2 of 3 trials: every point" in capsys.readouterr().out


def test_a_clone_without_changes_is_trained_again(tmp_path: Path) -> None:
    driver = Driver(tmp_path, space=THREE)
    write_yaml(tmp_path / "search.yaml", driver.config)
    first = driver.start()
    driver.fail(first)
    clone(tmp_path, first.config["task"].name, {})
    assert driver.start().config["task"].point == first.config["task"].point


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_points_are_repeated_where_the_configuration_says_so(tmp_path: Path, name: str) -> None:
    driver = Driver(tmp_path, trials=8, space=THREE, sampler={"name": name}, repeat_points=True)
    points = play(driver)
    assert len(points) == 8
    assert len(distinct(points)) <= 3
    assert driver.searcher.stop_reason == "all 8 trials"


def test_a_search_that_has_tried_every_point_does_not_grow(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=4, space=THREE)
    write_yaml(tmp_path / "search.yaml", driver.config)
    assert not is_exhausted(OpenedRun(RunFolder.at(tmp_path), driver.config, driver.records))
    play(driver)
    assert is_exhausted(OpenedRun(RunFolder.at(tmp_path), driver.config, driver.records))
    written = (tmp_path / "search.yaml").read_text()
    with pytest.raises(InputError, match="--trials 9: every point of the space has been tried"):
        grow(open_run(RunFolder.at(tmp_path)), 9)
    assert (tmp_path / "search.yaml").read_text() == written
    repeating = driver.config.model_copy(update={"repeat_points": True})
    assert not is_exhausted(OpenedRun(RunFolder.at(tmp_path), repeating, driver.records))
    write_yaml(tmp_path / "search.yaml", repeating)
    grow(open_run(RunFolder.at(tmp_path)), 9)


def test_a_search_that_has_tried_every_point_is_finished_until_points_may_be_repeated(
    tmp_path: Path,
) -> None:
    driver = Driver(tmp_path, trials=4, space=THREE)
    write_yaml(tmp_path / "search.yaml", driver.config)
    play(driver)
    reason = driver.searcher.stop_reason
    write_results(
        tmp_path / "results.json", assemble(driver.config, driver.records, SearchEnd(reason))
    )
    run = open_run(RunFolder.at(tmp_path))
    assert is_finished(run)
    # Neither a clone nor the same command again suggests more trials, because no points are left.
    assert finished_message(run).endswith(f"nothing was run now; {EXHAUSTED}")
    with pytest.raises(InputError, match="has ended; every point of the space has been tried"):
        clone(tmp_path, next(iter(driver.records.trials)), {})
    repeating = driver.config.model_copy(update={"repeat_points": True})
    refuse_other_search(RunFolder.at(tmp_path), repeating)
    adopt(open_run(RunFolder.at(tmp_path)), repeating)
    assert not is_finished(open_run(RunFolder.at(tmp_path)))


def test_a_grid_that_cannot_grow_stays_as_it_is(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=None, space=THREE, sampler={"name": "grid"})
    write_yaml(tmp_path / "search.yaml", driver.config)
    play(driver)
    written = (tmp_path / "search.yaml").read_text()
    with pytest.raises(InputError, match="trials: 11 is more than the 3 points"):
        grow(open_run(RunFolder.at(tmp_path)), 11)
    assert (tmp_path / "search.yaml").read_text() == written


def test_a_storage_that_is_lost_while_a_repeated_point_is_told_costs_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path / "x", space=THREE, storage=f"sqlite:///{tmp_path}/study.db")
    first = driver.start()
    driver.finish(first, 512, 0.9)
    propose_only(driver, first.config["task"].point)

    def lost(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(driver.study._study, "tell", lost)
    assert driver.start().config["task"].point != first.config["task"].point
    assert capsys.readouterr().out.count("the search goes on without it") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_search_in_a_small_space_ends_and_goes_on_when_asked_to_repeat(
    tmp_path: Path, dpo_tune: Run
) -> None:
    yaml = tmp_path / "small.yaml"
    yaml.write_text(
        "trainer: simulated\ntrials: 6\nspace: {optim.epochs: {int: [1, 3]}}\n"
        "stopping: {name: none}\nresources: {cpus: 0.5}\nwandb: {mode: disabled}\n"
    )
    done = dpo_tune("run", yaml)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the search ends with 3 of 6 trials: every point of the space") == 1
    assert "more trials:" not in done.stdout
    results = load_results(tmp_path / "runs" / "small")
    assert sorted(trial.config["optim.epochs"] for trial in results.trials) == [1, 2, 3]

    refused = dpo_tune("resume", "small", "--trials", "+2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: --trials 8: every point of the space has been tried")

    more = dpo_tune("run", yaml, "--set", "repeat_points=true")
    assert more.returncode == 0, more.stderr
    assert len(load_results(tmp_path / "runs" / "small").trials) == 6
