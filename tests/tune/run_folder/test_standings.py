"""The running counts of a driver equal a count over all records, at every event."""

import random
from pathlib import Path

import pytest

from tests.helpers.driver import Driver
from tune.config.objective import Objective
from tune.config.space import point_key
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.trial_record import ENDED, STATES


def records_in(folder: Path) -> Records:
    create_run(RunFolder.at(folder), Path(), "cpu")
    records = Records(RunFolder.at(folder), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    return records


def assert_as_counted(records: Records) -> None:
    """Compare the running counts with a count over every record."""
    trials, counted = list(records.trials.values()), records.standings
    searched = [record for record in trials if record.confirms is None]
    assert records.count(*STATES) == len(trials)
    for state in STATES:
        assert records.count(state) == sum(record.state == state for record in trials)
    assert records.open_trials() == [record for record in trials if record.state not in ENDED]
    assert records.confirmations == [record for record in trials if record.confirms is not None]
    assert records.standings.clones == sum(record.cloned_from is not None for record in trials)
    assert records.proposed == len(searched) - records.standings.clones
    measured = [record for record in searched if record.metrics]
    ended = [record for record in measured if record.has_ended]
    full = [record for record in ended if record.metrics["eval/accuracy"] >= 0.99]
    assert (counted.measured, counted.measured_and_ended) == (len(measured), len(ended))
    assert counted.saturated_share == pytest.approx(len(full) / max(1, len(ended)))
    for record in searched:
        same = [each.id for each in searched if each.config == record.config]
        assert counted.points[point_key(record.config)] == same


def test_counts_are_those_of_all_records(tmp_path: Path) -> None:
    records, draw = records_in(tmp_path), random.Random(0)
    for number in range(40):
        origin = draw.choice([{}, {}, {"cloned_from": "a-000"}, {"confirms": "a-000"}])
        trial = records.add(f"a-{number:03d}", {"seed": number % 7}, **origin)
        records.begin(trial.id)
        for open_trial in draw.sample(records.open_trials(), min(2, len(records.open_trials()))):
            report = {"pairs_seen": 64, "eval/accuracy": draw.choice([0.5, 0.995])}
            records.report(open_trial.id, Step(report, 1.0, 1.0))
        for open_trial in draw.sample(records.open_trials(), number % 2):
            records.end(open_trial.id, draw.choice(ENDED))
        assert_as_counted(records)
    opened = Records(RunFolder.at(tmp_path), records.objective)
    assert list(opened.trials.values()) == list(records.trials.values())
    assert_as_counted(opened)
    for open_trial in opened.open_trials():
        opened.reopen(open_trial.id, 0)
        assert_as_counted(opened)


def test_failures_in_a_row_go_by_the_order_of_the_trials_and_this_driver_session(
    tmp_path: Path,
) -> None:
    records = records_in(tmp_path)
    for number in range(6):
        records.add(f"a-{number:03d}", {})

    def end(number: int, is_failed: bool) -> int:
        records.end(f"a-{number:03d}", "failed" if is_failed else "finished")
        return records.standings.failures_in_a_row

    assert [end(5, True), end(3, True), end(4, False), end(0, True)] == [1, 2, 1, 1]
    assert [end(2, True), end(1, True)] == [1, 1]
    again = Records(RunFolder.at(tmp_path), records.objective)
    again.begin_driver_session()
    assert again.standings.failures_in_a_row == 0


def test_more_than_a_thousand_trials_come_back_in_the_order_of_their_numbers(
    tmp_path: Path,
) -> None:
    records = records_in(tmp_path)
    ids = [f"{records.run.prefix}-{number:03d}" for number in (98, 99, 100, 999, 1000, 1001, 10000)]
    for trial in ids:
        (tmp_path / "trials" / f"{trial}.json").write_text(f'{{"id": "{trial}", "config": {{}}}}')
    assert list(Records(RunFolder.at(tmp_path), records.objective).trials) == ids


def test_saturation_is_reported_once_when_half_of_the_ended_trials_are_saturated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path, trials=9, stopping={"name": "none"})
    counts = []
    for accuracy in (0.5, 0.5, 0.995, 0.5, 0.995, 0.995, 0.995):
        driver.finish(driver.start(), 512, accuracy)
        counts.append(capsys.readouterr().out.count("can't tell them apart"))
    assert counts == [0, 0, 0, 0, 0, 1, 0]


def test_a_grid_is_tried_point_by_point_and_none_twice(tmp_path: Path) -> None:
    space = {"optim.epochs": {"int": [1, 3]}, "optim.batch_size": {"choice": [4, 8]}}
    content = {"space": space, "sampler": {"name": "grid"}, "trials": None}
    driver = Driver(tmp_path, **content, points=[{"optim.epochs": 2, "optim.batch_size": 4}])
    first = [driver.start().config["task"].point for _ in range(3)]
    driver = Driver(tmp_path, **content, points=[{"optim.epochs": 2, "optim.batch_size": 4}])
    points = []
    while hasattr(trial := driver.start(), "config"):
        points.append(tuple(trial.config["task"].point.values()))
        driver.finish(trial, 512, 0.5)
    assert [tuple(point.values()) for point in first] == [(2, 4), (1, 4), (1, 8)]
    assert points == [(2, 4), (1, 4), (1, 8), (2, 8), (3, 4), (3, 8)]
