"""A user steers a running search from another process: `stop` and `clone`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_train.errors import InputError
from tests.conftest import Run, Start
from tests.helpers.driver import Driver
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import wait_until
from tune.commands.stop_clone import clone, stop
from tune.config.objective import Bound
from tune.config.schema import ConfirmConfig
from tune.run_folder.folder import open_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Cost, Results, write_results
from tune.run_folder.yaml_file import write_yaml
from tune.search.resume import adopt, is_finished

YAML = """
name: sim
trainer: simulated
eval_every_pairs: 64
trials: 3
simulated: {seconds_per_report: 1.5, noise: 0}
space:
  optim.learning_rate: {log_uniform: [1e-3, 1e-2]}
  dpo.beta: {log_uniform: [0.05, 0.5]}
stopping: {name: none}
resources: {at_once: 1}
"""


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    driver = Driver(tmp_path)
    write_yaml(tmp_path / "search.yaml", driver.config)
    return driver


def test_a_stop_is_obeyed_at_the_trials_next_report_and_at_no_others(
    tmp_path: Path, driver: Driver
) -> None:
    first, second = driver.start(), driver.start()
    stop(tmp_path, first.config["task"].name)
    assert driver.report(second, 64, 0.9) == "CONTINUE"
    assert driver.report(first, 64, 0.9) == "STOP"
    record = driver.records.trials[first.config["task"].name]
    assert (record.state, record.error) == ("stopped", "on request")
    assert not list((tmp_path / "requests").iterdir())


def test_clones_are_tried_next_in_their_order_and_beside_the_trials_of_the_search(
    tmp_path: Path, driver: Driver
) -> None:
    first = driver.start()
    rates = (2e-3, 3e-3)
    for rate in rates:
        clone(tmp_path, first.config["task"].name, {"optim.learning_rate": rate})
    clones = [driver.start(), driver.start()]
    assert [trial.config["task"].point["optim.learning_rate"] for trial in clones] == [*rates]
    assert {driver.records.trials[t.config["task"].name].cloned_from for t in clones} == {
        first.config["task"].name
    }
    rest = [driver.start() for _ in range(3)]
    assert driver.start() is None
    for trial in (first, *clones, *rest):
        driver.finish(trial, 512, 0.9)
    assert len(driver.records.trials) == 4 + 2
    assert len(driver.study.trials) == 4 + 2


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run, _: stop(run, "x-000"), "has no trial 'x-000'; trials: "),
        (lambda run, trial: clone(run, trial, {"optim.learning_rate": 1.0}), "lies outside"),
        (lambda run, trial: clone(run, trial, {"optim.epochs": 2}), "is not an axis"),
    ],
)
def test_an_impossible_stop_or_clone_is_refused_and_leaves_no_request(
    tmp_path: Path, driver: Driver, ask: Callable[[Path, str], None], message: str
) -> None:
    trial = driver.start().config["task"].name
    with pytest.raises(InputError, match=message):
        ask(tmp_path, trial)
    assert not (tmp_path / "requests").exists()


def test_changes_of_a_clone_may_activate_or_deactivate_axes(tmp_path: Path) -> None:
    space = {"lora": {"choice": [None, {"alpha": 32}]},
             "lora.r": {"int": [4, 64], "when": {"lora": "not null"}}}  # fmt: skip
    points = [{"lora": None}, {"lora": {"alpha": 32}, "lora.r": 8}]
    driver = Driver(tmp_path, space=space, points=points)
    write_yaml(tmp_path / "search.yaml", driver.config)
    without, adapted = (driver.start().config["task"].name for _ in range(2))
    clone(tmp_path, without, {"lora": {"alpha": 32}})
    drawn = driver.start()
    clone(tmp_path, adapted, {"lora": None})
    assert driver.start().config["task"].point == {"lora": None}
    assert 4 <= drawn.config["task"].point["lora.r"] <= 64
    record = driver.records.trials[drawn.config["task"].name]
    driver.finish(drawn, 512, 0.9)
    (trial,) = [t for t in driver.study.trials if t.user_attrs["trial"] == record.id]
    assert trial.params["lora.r"] == record.config["lora.r"]


def test_a_clone_that_a_killed_driver_recorded_is_not_made_twice(
    tmp_path: Path, driver: Driver
) -> None:
    trial = driver.start().config["task"].name
    clone(tmp_path, trial, {})
    (request,) = (tmp_path / "requests").iterdir()
    content = (request / "request.json").read_text()
    driver.start()
    request.mkdir()
    (request / "request.json").write_text(content)
    again = Driver(tmp_path)
    for _ in range(3):
        again.start()
    assert sum(record.cloned_from is not None for record in again.records.trials.values()) == 1


def test_an_invalid_request_is_set_aside(
    tmp_path: Path, driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = driver.start()
    strange = tmp_path / "requests" / "123" / "request.json"
    strange.parent.mkdir(parents=True)
    strange.write_text('{"kind": "pause", "trial": "x"}')
    assert driver.report(trial, 64, 0.9) == "CONTINUE"
    assert driver.report(trial, 128, 0.9) == "CONTINUE"
    assert capsys.readouterr().out.count("is ignored: ") == 1
    assert not strange.exists()


def test_a_search_in_which_a_clone_waits_or_that_grew_is_not_finished(
    tmp_path: Path, driver: Driver
) -> None:
    trials = [driver.start() for _ in range(4)]
    for trial in trials[1:]:
        driver.finish(trial, 512, 0.9)
    clone(tmp_path, trials[0].config["task"].name, {})
    driver.finish(trials[0], 512, 0.9)
    results = Results(
        name="x", objective=driver.records.objective, base={}, winner=None, cost=Cost(),
        trials=list(driver.records.trials.values()),
    )  # fmt: skip
    write_results(tmp_path / "results.json", results)
    assert not is_finished(open_run(RunFolder.at(tmp_path)))
    driver.finish(driver.start(), 512, 0.9)
    assert not is_finished(open_run(RunFolder.at(tmp_path)))
    write_results(
        tmp_path / "results.json",
        results.model_copy(update={"trials": [*driver.records.trials.values()]}),
    )
    assert is_finished(open_run(RunFolder.at(tmp_path)))


def test_a_search_whose_winner_is_now_chosen_otherwise_is_not_finished(
    tmp_path: Path, driver: Driver
) -> None:
    for trial in [driver.start() for _ in range(4)]:
        driver.finish(trial, 512, 0.9)
    results = Results(
        name="x", objective=driver.records.objective, base={}, winner=None, cost=Cost(),
        trials=list(driver.records.trials.values()),
        search=driver.config.model_dump(mode="json", by_alias=True),
    )  # fmt: skip
    write_results(tmp_path / "results.json", results)
    assert is_finished(open_run(RunFolder.at(tmp_path)))
    write_yaml(tmp_path / "search.yaml", driver.config)
    (tmp_path / "evaluations.json").write_text("{}")
    bounds = {"eval/drift": Bound(at_most=1)}
    adopt(
        open_run(RunFolder.at(tmp_path)), driver.config.model_copy(update={"constraints": bounds})
    )
    assert not is_finished(open_run(RunFolder.at(tmp_path)))
    assert (tmp_path / "evaluations.json").exists()
    changed = ConfirmConfig(evaluate="another:judge")
    adopt(open_run(RunFolder.at(tmp_path)), driver.config.model_copy(update={"confirm": changed}))
    assert not (tmp_path / "evaluations.json").exists()


def test_a_trial_that_has_ended_is_not_stopped(tmp_path: Path, driver: Driver) -> None:
    trial = driver.start()
    driver.finish(trial, 512, 0.9)
    with pytest.raises(InputError, match="has already ended \\(finished\\)"):
        stop(tmp_path, trial.config["task"].name)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_running_search_is_steered_from_another_process(
    tmp_path: Path, dpo_tune: Run, start: Start
) -> None:
    yaml = tmp_path / "sim.yaml"
    yaml.write_text(YAML)
    process = start("run", yaml)
    run = tmp_path / "runs" / "sim"
    wait_until(lambda: any(len(record.curve) >= 2 for record in records_of(run)), process)
    (first,) = records_of(run)
    requested = dpo_tune("clone", "sim", first.id, "--set", "dpo.beta=0.2")
    assert requested.stdout.startswith("requested: learning_rate=")
    assert dpo_tune("stop", "sim", first.id).returncode == 0
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    records = {record.id: record for record in records_of(run)}
    assert len(records) == 4
    assert records[first.id].error == "on request"
    (cloned,) = (record for record in records.values() if record.cloned_from)
    assert cloned.config == {**first.config, "dpo.beta": 0.2}
    late = dpo_tune("clone", "sim", first.id)
    assert late.returncode == 2
    assert f"has ended; to give it more trials: {sys.executable} -m tune resume" in late.stderr
