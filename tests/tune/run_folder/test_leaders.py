"""Finding the best of many trials without comparing all gives the same as the whole ranking."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.driver import TWO, Driver
from tune.config.objective import Bound, Objective, Report
from tune.run_folder import winner_rule
from tune.run_folder.held_out import HeldOut
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.trial_record import TrialRecord
from tune.search.choose_winner import finalists

PAIRS = 40
OBJECTIVES = [
    Objective.of("eval/accuracy"),
    Objective.of("eval/ranking"),
    Objective.of("eval/nll"),
    Objective.of(("eval/accuracy", "eval/drift")),
    Objective.of("eval/accuracy", {"eval/drift": Bound(at_most=1.2)}),
]


def whole_ranking(records: Records, trials: list[TrialRecord]) -> list[str]:
    """Rank by comparing every trial's best report with the largest value, pair by pair."""
    reports = [(trial.id, trial.metrics) for trial in trials]
    order = winner_rule.best_first(records.judge.candidates(reports)).tolist()
    fronts = records.objective.front_numbers([report for _, report in reports])
    return [trials[index].id for index in sorted(order, key=fronts.__getitem__)]


def measured(draw: np.random.Generator, pairs_seen: int) -> tuple[Report, HeldOut]:
    """Draw a report whose margins have the trial's own mean and scale; many trials are similar."""
    scale = draw.choice([0.3, 1.0, 5.0])
    margins = draw.normal(draw.choice([0.3, 1.0, 1.2, 3.5]), 1, PAIRS) * scale
    per_token = margins * draw.uniform(0.5, 1.5, PAIRS) + draw.normal(0, 0.3, PAIRS)
    held_out = HeldOut(
        *(np.asarray(each, np.float32) for each in (margins, 0 * margins, per_token))
    )
    report: Report = {"pairs_seen": pairs_seen, "eval/drift": float(draw.integers(1, 20)) / 10}
    for metric in ("eval/accuracy", "eval/ranking", "eval/nll"):
        values = held_out.values(metric)
        assert values is not None
        report[metric] = float(values.mean())
    return report, held_out


@pytest.mark.parametrize("prompts", [PAIRS, 12])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: each.text + each.bounds_text)
def test_the_best_of_random_trials_is_that_of_the_whole_ranking(
    tmp_path: Path, objective: Objective, prompts: int
) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), objective)
    records.begin_driver_session()
    records.held_out._clusters = np.arange(PAIRS) * prompts // PAIRS
    draw = np.random.default_rng(prompts)
    going: list[str] = []
    for number in range(80):
        going.append(records.add(f"a-{number:03d}", {"seed": number}).id)
        records.begin(going[-1])
        for trial in draw.choice(going, 2):
            # Some trials repeat earlier reports, because their process died.
            pairs_seen = int(draw.choice([64, 128, 192]))
            report, held_out = measured(draw, pairs_seen)
            records.report(trial, Step(report, 1.0, 1.0, held_out))
        if number % 3 == 0:
            measured_ones = [trial for trial in going if records.trials[trial].metrics]
            going.remove(records.end(str(draw.choice(measured_ones)), "finished").id)
            trials = [t for t in records.searched if objective.allows(t.metrics)]
            ended = [trial for trial in trials if trial.has_ended]
            best = records.best()
            assert ([best.id] if best else []) == whole_ranking(records, trials)[:1]
            for count in (1, 3, 50):
                found = records.standings.leaders.first(count, finalists=True)
                assert found == whole_ranking(records, ended)[:count]
    everyone = [trial for trial in records.searched if trial.metrics]
    assert [record.id for record in records.ranked(everyone)] == whole_ranking(records, everyone)
    again = Records(RunFolder.at(tmp_path), objective)
    again.held_out._clusters = records.held_out._clusters
    assert again.standings.leaders.first(80) == records.standings.leaders.first(80)


def test_with_a_saturated_share_the_other_share_decides_among_all_trials(tmp_path: Path) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    for name, (right, other) in {"a": (0.1, 0.6), "b": (9.0, 1.0), "c": (0.1, 0.7)}.items():
        per_token = np.where(np.arange(PAIRS) < other * PAIRS, 1, -1)
        margins = np.linspace(0.1, right, PAIRS)
        columns = (margins, 0 * margins, per_token)
        records.add(name, {})
        report = {"pairs_seen": 64, "eval/accuracy": 1.0, "eval/drift": 1.0}
        held_out = HeldOut(*(np.asarray(each, np.float32) for each in columns))
        records.report(name, Step(report, 1.0, 1.0, held_out))
        records.end(name, "finished")
    assert records.standings.leaders.first(3) == ["b", "c", "a"]


def test_without_held_out_pairs_of_those_in_front_their_values_decide(tmp_path: Path) -> None:
    """Earlier versions kept no held-out pairs. Those of trials far behind are not needed."""
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    for name, accuracy, scale in (("a", 0.9, 1.0), ("b", 0.875, 9.0), ("far", 0.1, 1.0)):
        margins = np.where(np.arange(PAIRS) < accuracy * PAIRS, scale, -1.0)
        columns = [each.astype(np.float32) for each in (margins, 0 * margins, margins)]
        report = {"pairs_seen": 64, "eval/accuracy": accuracy, "eval/drift": 1.0}
        records.add(name, {})
        kept = None if name == "far" else HeldOut(*columns)
        records.report(name, Step(report, 1.0, 1.0, kept))
        records.end(name, "finished")
    assert records.standings.leaders.first(3) == ["b", "a", "far"]
    assert [record.id for record in records.ranked(records.searched)] == ["b", "a", "far"]
    (tmp_path / "trials" / "b.npz").unlink()
    again = Records(RunFolder.at(tmp_path), records.objective)
    assert again.standings.leaders.first(3) == ["a", "b", "far"]
    assert [record.id for record in again.ranked(again.searched)] == ["a", "b", "far"]


def test_held_out_values_of_trials_far_behind_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    for number in range(20):
        accuracy = 0.9 if number < 3 else 0.3
        margins = np.where(np.arange(PAIRS) < accuracy * PAIRS, 1.0, -1.0).astype(np.float32)
        report = {"pairs_seen": 64, "eval/accuracy": accuracy, "eval/drift": 1.0}
        records.add(f"a-{number}", {})
        records.report(
            f"a-{number}", Step(report, 1.0, 1.0, HeldOut(margins, 0 * margins, margins))
        )
        records.end(f"a-{number}", "finished")
    again = Records(RunFolder.at(tmp_path), records.objective)
    read: list[str] = []
    of = again.held_out.of
    monkeypatch.setattr(again.held_out, "of", lambda trial: (read.append(trial), of(trial))[1])
    assert again.best() is not None
    assert len(again.ranked(again.searched)) == 20
    assert set(read) == {"a-0", "a-1", "a-2"}


@pytest.mark.parametrize("objective", ["eval/accuracy", TWO])
def test_finalists_have_ended_and_may_win(tmp_path: Path, objective: Any) -> None:
    content: dict[str, Any] = {"confirm": {"finalists": 9}, "objective": objective}
    content["constraints"] = {"eval/drift": {"at_most": 1.5}}
    driver = Driver(tmp_path, trials=6, **content)
    trials = [driver.start() for _ in range(6)]
    for trial, accuracy, drift in zip(trials, (0.7, 0.95, 0.9, 0.8), (1, 2, 1, 1), strict=False):
        driver.finish(trial, 512, accuracy, drift=drift)
    driver.report(trials[4], 64, 0.99)
    found = [record.id for record in finalists(driver.config, driver.records)]
    assert found == [trials[index].config["task"].name for index in (2, 3, 0)]
