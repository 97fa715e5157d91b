"""Finalists that are trained again with other seeds: what runs, what wins, what is reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_train.config_base import parse
from dpo_train.errors import InputError
from tests.conftest import Run, Start
from tests.helpers.driver import PAIRS, RATE, Driver, finish
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import YAML, ended, wait_until
from tune.config.checks import check
from tune.config.schema import SearchConfig
from tune.run_folder.results import load_results
from tune.search import choose_winner
from tune.workers.outcome import Ending, Outcome


def search(driver: Driver, *accuracies: float, drifts: tuple[float, ...] = ()) -> list[str]:
    """Play the search itself and return the ids of its trials."""
    trials = [driver.start() for _ in accuracies]
    for number, (trial, accuracy) in enumerate(zip(trials, accuracies, strict=True)):
        finish(driver, trial, accuracy, drifts[number] if drifts else 1.0)
    return [trial.config["task"].name for trial in trials]


def test_a_lucky_trial_does_not_win(tmp_path: Path) -> None:
    driver = Driver(tmp_path, confirm={"finalists": 2, "seeds": 2})
    lucky, solid, weak, _ = search(driver, 0.95, 0.93, 0.6, 0.6)
    seen = []
    for _ in range(4):
        again = driver.start()
        assert driver.config.trial(again.config["task"].point).seed > 0
        seen.append((again.config["task"].confirms, again.config["task"].point["seed"]))
        finish(driver, again, 0.85 if again.config["task"].confirms == lucky else 0.92)
    assert seen == [(lucky, 1), (solid, 1), (lucky, 2), (solid, 2)]
    assert driver.start() == "FINISHED"
    assert driver.final_tasks.is_done
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert (confirmation.winner, confirmation.searched) == (solid, lucky)
    first, second = confirmation.finalists
    assert [run.value for run in first.runs] == [0.92, 0.92]
    assert (first.mean, second.searched) == (0.92, 0.95)
    low, high = second.behind.interval
    assert second.behind.difference == pytest.approx(0.07)
    assert low < 0.07 < high
    # The configuration's best run is that of the search: no other seed reached its 0.93.
    assert driver.final_tasks.end.stamp is not None
    assert driver.final_tasks.end.stamp.trial == solid
    assert weak not in {finalist.trial for finalist in confirmation.finalists}


def test_the_winning_configurations_best_run_lies_in_winner(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=1, confirm={"finalists": 1, "seeds": 3})
    (trial,) = search(driver, 0.8)
    for accuracy in (0.7, 0.9, 0.85):
        finish(driver, driver.start(), accuracy)
    driver.start()
    stamp = json.loads((tmp_path / "winner" / "trial.json").read_text())
    assert stamp["configuration"] == trial
    assert stamp["config"]["seed"] == 2
    assert stamp["report"]["eval/accuracy"] == 0.9


def test_without_an_intact_export_the_next_trial_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 2, "seeds": 1})
    first, second = search(driver, 0.9, 0.8)
    for accuracy in (0.9, 0.8):
        finish(driver, driver.start(), accuracy)
    for export in (tmp_path / "best").glob("*/*/trial.json"):
        stamp = json.loads(export.read_text())
        if first in (stamp["trial"], stamp.get("configuration")):
            export.write_text(json.dumps(stamp) + " ")
    driver.start()
    assert driver.final_tasks.end.stamp is not None
    assert driver.final_tasks.end.stamp.trial == second
    assert f"{first} won, but has no complete export" in capsys.readouterr().out


def test_pairs_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """Two models that fail on the same pairs differ clearly although their intervals overlap."""
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 2, "seeds": 1})
    search(driver, 0.9, 0.87)
    finish(driver, driver.start(), 0.9)
    finish(driver, driver.start(), 0.87)
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    low, _ = confirmation.finalists[1].behind.interval
    assert low > 0
    alone = 1.96 * np.sqrt(0.9 * 0.1 / PAIRS)
    assert confirmation.finalists[1].behind.difference < 2 * alone


def test_sampler_rungs_and_search_ignore_a_confirmation_run(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 1, "seeds": 2})
    search(driver, 0.9, 0.8)
    rungs, count = driver.rungs, len(driver.study.trials)
    again = driver.start()
    for pairs in (64, 192):
        assert driver.report(again, pairs, 0.1, nll=9.0) == "CONTINUE"
    assert (driver.rungs, len(driver.study.trials)) == (rungs, count)
    best = driver.records.best()
    assert best is not None
    assert best.metrics["eval/accuracy"] == 0.9
    rebuilt = Driver(tmp_path, trials=2, confirm={"finalists": 1, "seeds": 2})
    assert len(rebuilt.study.trials) == count
    # The open run goes on first, under its id. Then comes the missing seed.
    assert rebuilt.start().config["task"].name == again.config["task"].name
    assert rebuilt.start().config["task"].point["seed"] == 2


def test_nothing_is_confirmed_while_a_trial_of_the_search_is_open(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 1, "seeds": 1})
    first, second = driver.start(), driver.start()
    finish(driver, first, 0.9)
    assert driver.start() is None
    finish(driver, second, 0.95)
    assert driver.start().config["task"].confirms == second.config["task"].name


def test_a_configuration_with_a_failed_seed_comes_last(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 2, "seeds": 1})
    shaky, solid = search(driver, 0.95, 0.7)
    driver.fail(driver.start())
    finish(driver, driver.start(), 0.7)
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert [finalist.trial for finalist in confirmation.finalists] == [solid, shaky]
    (failed,) = confirmation.finalists[1].runs
    assert (failed.value, failed.error) == (None, "loss is nan")
    assert confirmation.finalists[1].mean is None


def test_a_finalist_that_failed_does_not_change_how_the_others_are_compared(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=3, confirm={"finalists": 3, "seeds": 1})
    shaky, _, soft = search(driver, 0.95, 0.90, 0.895)
    driver.fail(driver.start())
    finish(driver, driver.start(), 0.90)
    finish(driver, driver.start(), 0.895, scale=5.0)
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert (confirmation.winner, confirmation.finalists[-1].trial) == (soft, shaky)


def test_a_budget_that_ends_leaves_all_finalists_with_equally_many_seeds(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=2, budget={"hours": 1}, confirm={"finalists": 2, "seeds": 3})
    search(driver, 0.9, 0.8)
    for _ in range(3):
        finish(driver, driver.start(), 0.85)
    began, _ = driver.records.run.driver_sessions[0]
    driver.records.run.driver_sessions.insert(0, (began - 9000, began - 9000 + 3601))
    assert driver.start() == "FINISHED"
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert [len(finalist.runs) for finalist in confirmation.finalists] == [1, 1]


def test_finalists_within_the_range_of_luck_are_reported_as_tied(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=3, confirm={"finalists": 3, "seeds": 1})
    _, near, far = search(driver, 0.90, 0.89, 0.70)
    for accuracy, scale in ((0.90, 1.0), (0.895, 5.0), (0.70, 1.0)):
        finish(driver, driver.start(), accuracy, scale=scale)
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    # The second has the larger soft share. That it is one pair behind does not count against it.
    assert confirmation.winner == near
    assert confirmation.tied == [confirmation.searched]
    assert confirmation.decided_by.startswith(
        "no more than luck: in the mean of eval/accuracy over 1 seed"
    )
    assert [finalist.trial for finalist in confirmation.finalists][-1] == far


def test_a_users_own_numbers_are_shown_with_the_finalists(tmp_path: Path) -> None:
    wanted = {"finalists": 2, "seeds": 1, "evaluate": "judge:score"}
    driver = Driver(tmp_path, trials=2, confirm=wanted)
    first, second = search(driver, 0.9, 0.8)
    finish(driver, driver.start(), 0.9)
    finish(driver, driver.start(), 0.8)
    tasks = [driver.start(), driver.start()]
    assert driver.start() is None  # the winner waits for these evaluations
    for task in tasks:
        # Each evaluated run is a finalist's best one.
        run = task.config["task"].name.removeprefix("evaluating-")
        of_second = second in (run, driver.records.trials[run].confirms)
        driver.end(task, Outcome(Ending.FINISHED, evaluation={"wins": 1 if of_second else 0}))
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert (confirmation.winner, confirmation.tied) == (first, [])
    assert confirmation.decided_by == "the mean of eval/accuracy over 1 seed"
    assert [each.evaluation for each in confirmation.finalists] == [{"wins": 0}, {"wins": 1}]
    # A later driver session does not evaluate again.
    assert choose_winner.next_evaluation(driver.config, driver.records, set()) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": {"seed": {"int": [0, 9]}}, "confirm": {}}, "seed can't be an axis"),
        ({"confirm": {"evaluate": "no colon"}}, "confirm.evaluate"),
    ],
)
def test_what_contradicts_itself_is_refused(content: dict[str, Any], message: str) -> None:
    basics = {"name": "x", "trainer": "simulated", "trials": 2, "space": RATE}
    with pytest.raises(InputError, match=message):
        check(parse(SearchConfig, {**basics, **content}, {}, "x.yaml"))


JUDGE = """
import json

def score(folder):
    return {"pairs": json.loads((folder / "simulated.json").read_text())["pairs_seen"]}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_driver_killed_while_it_confirms_goes_on_and_asks_the_users_judge_once(
    tmp_path: Path, dpo_tune: Run, start: Start
) -> None:
    (tmp_path / "sim.yaml").write_text(YAML)
    (tmp_path / "my_judge.py").write_text(JUDGE)
    run = tmp_path / "runs" / "sim"
    wanted = ("--set", "trials=4", "--set", "simulated.noise=0.05",
              "--set", "confirm={finalists: 2, seeds: 2, evaluate: 'my_judge:score'}")  # fmt: skip
    refused = dpo_tune("run", "sim.yaml", *wanted[:-1], "confirm={evaluate: 'no_judge:score'}")
    assert refused.returncode == 2
    assert "there is no module 'no_judge'" in refused.stderr
    assert not run.exists()

    process = start("run", "sim.yaml", *wanted, "--set", "simulated.seconds_per_report=0.2")
    wait_until(lambda: any(r.confirms and r.curve for r in records_of(run)), process)
    process.kill()
    process.communicate()
    before = ended(run)
    done = dpo_tune("resume", run)
    assert done.returncode == 0, done.stderr
    after = ended(run)
    assert {trial: after[trial] for trial in before} == before
    assert [record.confirms is None for record in records_of(run)] == [True] * 4 + [False] * 4
    results = load_results(run)
    confirmation = results.confirmation
    assert confirmation is not None
    assert results.winner is not None
    assert (len(results.trials), len(results.confirmations)) == (4, 4)
    assert confirmation.winner == results.winner.trial
    assert confirmation.finalists[0].mean == max(f.mean or 0 for f in confirmation.finalists)
    assert all("pairs" in finalist.evaluation for finalist in confirmation.finalists)
    assert "held_out" not in (run / "results.json").read_text()
    best = max(
        (t for t in results.runs if confirmation.winner in (t.id, t.confirms)),
        key=lambda t: t.metrics["eval/accuracy"],
    )
    assert results.winner.run == best.id
    # When the driver died decides which trials are finalists, and so whether they are tied.
    assert "the mean of eval/accuracy over 2 seeds" in confirmation.decided_by
    assert f"{confirmation.winner} won by {confirmation.decided_by}" in done.stdout
    assert dpo_tune("run", "sim.yaml", *wanted,
                    "--set", "simulated.seconds_per_report=0.2").returncode == 0  # fmt: skip
    assert ended(run) == after
