"""Constraints on the winner: what Optuna receives, what wins, what a finished search accepts."""

from pathlib import Path
from typing import Any

import pytest

from dpo_train.config_base import parse
from dpo_train.errors import InputError
from tests.helpers.driver import Driver, finish
from tune.config.load import load_search
from tune.config.objective import Bound
from tune.config.schema import SearchConfig
from tune.run_folder.assemble import assemble
from tune.run_folder.folder import open_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.yaml_file import write_yaml
from tune.search.resume import adopt

BOUND = {"eval/drift": {"at_most": 0.5}}


def test_reports_beyond_a_bound_do_not_win_and_optuna_gets_the_violation(tmp_path: Path) -> None:
    driver = Driver(tmp_path, trials=3, constraints=BOUND)
    far, near, early = driver.start(), driver.start(), driver.start()
    driver.report(early, 64, 0.7, 0.1, 0.3)  # within the bound, and later outside
    finish(driver, far, 0.95, drift=2.0)
    finish(driver, near, 0.80, drift=0.4)
    finish(driver, early, 0.90, drift=0.9)
    constraints = {trial.user_attrs["trial"]: trial.constraints for trial in driver.study.trials}
    assert constraints[far.config["task"].name]["eval/drift"] == pytest.approx(1.5)
    assert constraints[near.config["task"].name]["eval/drift"] == pytest.approx(-0.1)
    assert driver.records.trials[early.config["task"].name].metrics["pairs_seen"] == 64
    driver.start()
    assert driver.final_tasks.end.stamp is not None
    assert driver.final_tasks.end.stamp.trial == near.config["task"].name
    results = assemble(driver.config, driver.records, driver.final_tasks.end)
    assert results.ranking[0] == near.config["task"].name
    assert results.objective.bounds == {"eval/drift": Bound(at_most=0.5)}
    # A study that is rebuilt from the records has the same constraints.
    again = Driver(tmp_path, trials=3, constraints=BOUND)
    assert {t.user_attrs["trial"]: t.constraints for t in again.study.trials} == constraints


def test_a_finished_search_refuses_a_constraint_that_none_of_its_exports_meets(
    tmp_path: Path,
) -> None:
    driver = Driver(tmp_path, trials=1)
    finish(driver, driver.start(), 0.9, drift=2.0)
    write_yaml(tmp_path / "search.yaml", driver.config)
    before = (tmp_path / "search.yaml").read_text()
    stricter = driver.config.model_copy(update={"constraints": {"eval/drift": Bound(at_most=0.5)}})
    with pytest.raises(InputError, match=r"no weights with eval/drift at most 0.5 are left"):
        adopt(open_run(RunFolder.at(tmp_path)), stricter)
    assert (tmp_path / "search.yaml").read_text() == before
    adopt(
        open_run(RunFolder.at(tmp_path)),
        stricter.model_copy(update={"constraints": {"eval/drift": Bound(at_most=3)}}),
    )


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"eval/drift": {}}, "a bound needs at_most or"),
        ({"eval/drift": {"at_most": 1, "at_least": 2}}, "so nothing could win"),
        ({"eval/drift": {"at_mst": 1}}, "at_mst"),
        ({"drift": {"at_most": 1}}, "constraints.drift"),
    ],
)
def test_an_invalid_constraint_is_refused(bounds: dict[str, Any], message: str) -> None:
    content = {"name": "x", "trainer": "simulated", "trials": 2, "constraints": bounds}
    with pytest.raises(InputError, match=message):
        parse(SearchConfig, content, {}, "x.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("select: one_standard_error", "select: one_standard_error is no longer supported"),
        ("confirm: {evaluate: 'a:b', decide_by: wins}", "confirm.decide_by: wins is no longer"),
        ("select: best", ""),
        ("confirm: {decide_by: null}", ""),
    ],
)
def test_removed_fields_are_refused_unless_they_had_no_effect(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"trainer: simulated\ntrials: 1\n{line}\n")
    if not message:
        assert load_search(path).trials == 1
        return
    with pytest.raises(InputError, match=message):
        load_search(path)


def test_trials_are_evaluated_at_the_rungs_unless_more_is_asked_for() -> None:
    def due(**content: Any) -> list[int]:
        basics = {"name": "x", "trainer": "simulated", "trials": 1}
        trial = parse(SearchConfig, {**basics, **content}, {}, "x").base_trial()
        found = [trial.next_evaluation(0)]
        while len(found) < 3:
            found.append(trial.next_evaluation(found[-1]))
        return found

    assert due() == [64, 192, 576]
    assert due(stopping={"name": "none"}) == [64, 192, 576]
    assert due(stopping={"grace_pairs": 128, "reduction": 4}) == [128, 512, 2048]
    assert due(eval_every_pairs=100, stopping={"grace_pairs": 100}) == [100, 200, 300]
    assert due(eval_at_pairs=[10, 40, 50]) == [10, 40, 50]
