"""Searcher and scheduler, called as Tune calls them, with records on disk and without Ray."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dpo_train.errors import InputError
from dpo_train.evaluation.test_report import Numbers, TestReport
from tests.helpers.driver import Driver, export
from tune.workers.outcome import Ending, Outcome


def test_optuna_gets_the_true_state_of_each_ended_trial(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    first, second, third = driver.start(), driver.start(), driver.start()
    driver.report(first, 64, 0.9, nll=0.1)
    driver.report(first, 128, 0.95, nll=0.1)
    driver.finish(first, 512, 0.92, nll=0.1)
    assert driver.report(second, 64, 0.5, nll=0.7) == TrialScheduler.STOP
    driver.fail(third)
    trials = driver.study.trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert trials[0].value == 0.95
    assert trials[0].intermediate_values == {64: 0.9, 128: 0.95, 512: 0.92}
    assert trials[1].intermediate_values == {64: 0.5}
    states = [record.state for record in driver.records.trials.values()]
    assert states == ["finished", "stopped", "failed"]


def test_early_stopping_looks_at_its_own_metric(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    first, second = driver.start(), driver.start()
    driver.report(first, 64, 0.9, nll=0.6)
    # This one is less accurate but has a lower nll, so it goes on.
    assert driver.report(second, 64, 0.5, nll=0.5) == TrialScheduler.CONTINUE


def test_a_rebuilt_search_has_the_same_rungs_study_and_open_trials(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=6)
    trials = [driver.start() for _ in range(4)]
    for number, trial in enumerate(trials[:3]):
        driver.report(trial, 64, 0.6 + number / 10, nll=0.6 - number / 10)
    driver.report(trials[2], 128, 0.9, nll=0.2)
    driver.report(trials[2], 192, 0.9, nll=0.2)
    driver.finish(trials[2], 512, 0.9, nll=0.2)
    again = Driver(tmp_path, trials=6)
    assert again.rungs == driver.rungs
    assert any(again.rungs.values())
    ended = [t for t in driver.study.trials if t.state.is_finished()]
    rebuilt = [t for t in again.study.trials if t.state.is_finished()]
    assert [(t.params, t.state, t.value, t.intermediate_values) for t in rebuilt] == [
        (t.params, t.state, t.value, t.intermediate_values) for t in ended
    ]
    open_before = [t.config for t in trials if again.records.trials[t.config["task"].name].state
                   not in ("finished", "stopped", "failed")]  # fmt: skip
    assert [again.start().config for _ in open_before] == open_before


def test_a_report_that_arrives_twice_is_recorded_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    driver.report(trial, 64, 0.6)
    driver.report(trial, 128, 0.7)
    driver.report(trial, 128, 0.7)
    assert len(driver.records.trials[trial.config["task"].name].curve) == 2


def test_the_users_points_come_first_and_the_rest_is_drawn(tmp_path: Path) -> None:
    driver = Driver(tmp_path, points=[{"optim.learning_rate": 1e-4}, {}])
    assert driver.start().config["task"].point == {"optim.learning_rate": 1e-4}
    drawn = {driver.start().config["task"].point["optim.learning_rate"] for _ in range(3)}
    assert len(drawn) == 3
    assert driver.start() is None


def test_a_grid_is_tried_whole_and_once(tmp_path: Path) -> None:
    space = {"optim.batch_size": {"choice": [4, 8]}, "optim.epochs": {"int": [1, 3]}}
    driver = Driver(tmp_path, trials=None, sampler={"name": "grid"}, space=space)
    points = [driver.start().config["task"].point for _ in range(6)]
    assert len({tuple(point.values()) for point in points}) == 6
    assert driver.start() is None


@pytest.mark.parametrize("name", ["tpe", "cmaes", "gp", "random"])
def test_the_same_seed_proposes_the_same_trials(tmp_path: Path, name: str) -> None:
    def points(folder: Path, seed: int) -> list[Any]:
        driver = Driver(folder, trials=14, sampler={"name": name, "seed": seed})
        seen = []
        for number in range(14):
            trial = driver.start()
            driver.finish(trial, 512, 0.5 + number / 100)
            seen.append(trial.config["task"].point)
        return seen

    first = points(tmp_path / "a", 0)
    assert points(tmp_path / "b", 0) == first
    assert points(tmp_path / "c", 1) != first


def test_an_invalid_combination_fails_its_trial_and_the_next_is_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {
        "dpo.loss": {"choice": ["sigmoid", "exo_pair"]},
        "dpo.label_smoothing": {"uniform": [0, 0.2]},
    }
    config = {"dpo": {"label_smoothing": 0.1}, "space": space}
    points = [
        {"dpo.loss": "exo_pair", "dpo.label_smoothing": 0},
        {"dpo.loss": "sigmoid", "dpo.label_smoothing": 0},
    ]
    with pytest.raises(InputError, match="exo_pair needs label_smoothing"):
        Driver(tmp_path / "given", points=points, **config)
    driver = Driver(tmp_path / "drawn", **config)
    driver.config = driver.config.model_copy(update={"points": points})
    driver.searcher._config, driver.searcher._listed = driver.config, driver.config.given_points
    assert driver.start().config["task"].point["dpo.loss"] == "sigmoid"
    first = next(iter(driver.records.trials.values()))
    assert first.state == "failed"
    assert "exo_pair needs" in (first.error or "")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " failed " in line]
    assert line.endswith(f"  {first.error}")


def test_at_once_limits_the_running_trials(tmp_path: Path) -> None:
    driver = Driver(tmp_path, resources={"at_once": 2})
    first = driver.start()
    driver.start()
    assert driver.start() is None
    driver.finish(first, 512, 0.9)
    assert driver.start() is not None


def test_failures_in_a_row_end_the_search_and_stop_what_runs(tmp_path: Path) -> None:
    driver = Driver(tmp_path, budget={"failures_in_a_row": 2})
    good, bad, worse = driver.start(), driver.start(), driver.start()
    driver.fail(bad)
    driver.fail(worse)
    assert driver.report(good, 64, 0.9) == TrialScheduler.STOP
    assert driver.start() == Searcher.FINISHED
    assert "failures_in_a_row" in driver.searcher.stop_reason


def test_hours_of_all_driver_sessions_count_towards_the_budget(tmp_path: Path) -> None:
    driver = Driver(tmp_path, budget={"hours": 1})
    trial = driver.start()
    assert driver.report(trial, 64, 0.9) == TrialScheduler.CONTINUE
    began, _ = driver.records.run.driver_sessions[0]
    driver.records.run.driver_sessions.insert(0, (began - 9000, began - 9000 + 3601))
    assert driver.report(trial, 128, 0.9) == TrialScheduler.STOP
    assert driver.start() == Searcher.FINISHED


def test_the_last_trials_go_on_when_all_are_proposed(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2)
    first, second = driver.start(), driver.start()
    assert driver.start() is None
    assert driver.report(first, 64, 0.9) == TrialScheduler.CONTINUE
    driver.finish(first, 512, 0.9)
    assert driver.report(second, 64, 0.9) == TrialScheduler.CONTINUE
    driver.finish(second, 512, 0.9)
    assert {record.state for record in driver.records.trials.values()} == {"finished"}
    assert driver.searcher.stop_reason == "all 2 trials"


def test_the_winner_is_evaluated_on_test_once_after_the_last_trial(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2, trainer="trl")
    first, second = driver.start(), driver.start()
    driver.finish(first, 512, 0.9)
    assert driver.start() is None
    export(driver, second, accuracy=0.95)
    driver.finish(second, 512, 0.95)
    judging = driver.start()
    assert (tmp_path / "winner" / "weights").exists()
    assert not driver.final_tasks.is_done
    report = TestReport(test=Numbers(metrics={"ranking": 0.9}), base=Numbers())
    driver.end(judging, Outcome(Ending.FINISHED, test=report))
    assert driver.final_tasks.is_done
    assert driver.final_tasks.end.test == report
    assert driver.start() == Searcher.FINISHED
    assert len(driver.records.trials) == 2


def test_a_process_that_dies_and_is_tried_again_ends_no_trial(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    driver.report(trial, 64, 0.9)
    saved = tmp_path / "state" / trial.config["task"].name / "64"
    saved.mkdir(parents=True)
    trial.status = "ERROR"  # Tune sets this before it queues the trial again
    driver.scheduler.on_trial_error(None, trial)
    assert driver.records.trials[trial.config["task"].name].state == "running"
    assert saved.exists()


def test_deaths_are_counted_anew_after_each_report(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    trial.run_metadata.num_failures = 3
    driver.report(trial, 64, 0.9)
    assert trial.run_metadata.num_failures == 0


def test_no_more_are_proposed_than_there_are_places_and_one(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=20, resources={"at_once": 32})
    trials = [driver.start() for _ in range(8 + 1)]
    assert driver.start() is None
    driver.finish(trials[0], 512, 0.9)
    assert driver.start() is not None


@pytest.mark.parametrize("way", ["step", "process"])
def test_a_failed_test_evaluation_costs_only_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    driver = Driver(tmp_path, trials=1, trainer="trl")
    trial = driver.start()
    export(driver, trial, accuracy=0.9)
    driver.finish(trial, 512, 0.9)
    judging = driver.start()
    if way == "step":
        driver.end(judging, Outcome(Ending.FAILED, "no memory"))
    else:
        judging.error_file = tmp_path / "error.txt"
        judging.error_file.write_text("Failure # 1 (occurred at noon)\nTraceback\nno memory\n")
        driver.scheduler.on_trial_error(None, judging)
    assert driver.final_tasks.is_done
    assert driver.final_tasks.end.stamp is not None
    assert "could not be evaluated on the test split: no memory" in capsys.readouterr().out


def test_open_trials_of_a_search_whose_budget_is_spent_end_with_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path, budget={"hours": 1})
    driver.report(driver.start(), 64, 0.9)
    driver.start()
    driver.records._session_began -= 3601
    driver.records.touch()
    again = Driver(tmp_path, budget={"hours": 1})
    assert again.start() == Searcher.FINISHED
    assert [record.state for record in again.records.trials.values()] == ["stopped", "failed"]


def test_failures_of_an_earlier_driver_session_do_not_end_the_next(tmp_path: Path) -> None:
    driver = Driver(tmp_path, budget={"failures_in_a_row": 1})
    driver.fail(driver.start())
    assert driver.start() == Searcher.FINISHED
    assert isinstance(Driver(tmp_path, budget={"failures_in_a_row": 1}).start().config, dict)


def test_wrong_input_that_a_trial_finds_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    driver.end(trial, Outcome(Ending.WRONG_INPUT, "no pair is left"))
    assert driver.scheduler.input_error == "no pair is left"
    assert driver.records.trials[trial.config["task"].name].state == "pending"
    assert driver.start() == Searcher.FINISHED


@pytest.mark.parametrize("name", ["median", "none"])
def test_other_stopping_rules_run_to_the_end(tmp_path: Path, name: str) -> None:
    driver = Driver(tmp_path, trials=6, stopping={"name": name})
    decisions = []
    for number in range(6):
        trial = driver.start()
        for pairs in (64, 128, 192):
            decision = driver.report(trial, pairs, 0.5, nll=0.1 + number / 10)
            decisions.append(decision)
            if decision == TrialScheduler.STOP:
                break
        else:
            driver.finish(trial, 512, 0.5, nll=0.1 + number / 10)
    assert (TrialScheduler.STOP in decisions) == (name == "median")
    again = Driver(tmp_path, trials=7, stopping={"name": name})
    trial = again.start()
    assert again.report(trial, 64, 0.5, nll=0.1) == TrialScheduler.CONTINUE
