"""A search with two objectives: its front, how trials are stopped, which of the front wins."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from dpo_train.errors import InputError
from dpo_train.evaluation.test_report import Numbers, SampledKl, TestReport
from tests.helpers.driver import RATE, TWO, Driver, export, finish
from tests.helpers.pareto import beats
from tests.helpers.simulated_results import simulated
from tests.helpers.simulated_search import YAML
from tune.config.checks import check
from tune.config.load import load_search
from tune.config.objective import Objective
from tune.config.schema import EarlierPoints, SearchConfig
from tune.publish import model_card
from tune.report import page, terminal
from tune.run_folder.exports import exports, promote_to_winner
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.search.choose_winner import finalists
from tune.search.warm_start import with_earlier_points
from tune.tracking.wandb_payload import definition
from tune.workers.outcome import Ending, Outcome
from tune.workers.tasks import TestTask


def config(**content: Any) -> SearchConfig:
    basics = {"name": "x", "trainer": "simulated", "trials": 4, "space": RATE, "objective": TWO}
    return check(SearchConfig.model_validate({**basics, **content}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sampler": {"name": "cmaes"}}, "type `sampler: {name: tpe}`, or take gp"),
        ({"stopping": {"name": "median"}}, "type `stopping: {name: asha}`, or take none"),
        ({"objective": ["eval/drift", "eval/accuracy"]}, r"`objective: \[eval/accuracy, eval/drif"),
        ({"objective": ["eval/accuracy", "eval/nll"]}, "--set stopping.metric=eval/accuracy"),
    ],
)
def test_what_two_objectives_do_not_go_with_is_refused(
    content: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config(**content)


@pytest.mark.parametrize(
    "objective", ["[eval/accuracy]", "[eval/accuracy, eval/accuracy]", "[eval/accuracy, eval/step]",
                  "[eval/accuracy, eval/drift, eval/nll]", "[[eval/drift], eval/nll]", "3"],
)  # fmt: skip
def test_neither_one_nor_two_metrics_are_refused(tmp_path: Path, objective: str) -> None:
    (tmp_path / "x.yaml").write_text(YAML + f"objective: {objective}\n")
    with pytest.raises(
        InputError, match="objective: (there is no|must be one metric or two different ones)"
    ):
        load_search(tmp_path / "x.yaml")


def test_a_rebuilt_search_has_the_same_rungs_and_study(tmp_path: Path) -> None:
    content: dict[str, Any] = {"objective": TWO, "trials": 9, "stopping": {"brackets": 2}}
    driver = Driver(tmp_path, **content)
    draw = random.Random(1)
    for number in range(8):
        trial = driver.start()
        for pairs in (64, 128, 192):
            nll, drift = draw.random(), draw.random()
            if driver.report(trial, pairs, 0.5 + nll / 2, nll, drift) == TrialScheduler.STOP:
                break
        else:
            if number < 6:
                driver.finish(trial, 512, 0.9, 0.1, draw.random())
    again = Driver(tmp_path, **content)
    assert again.scheduler._rungs.rungs == driver.scheduler._rungs.rungs
    assert {bracket for bracket, _ in again.scheduler._rungs.rungs} == {0, 1}

    def history(driver: Driver) -> list[Any]:
        ended = [trial for trial in driver.study.trials if trial.state.is_finished()]
        return [(t.params, t.state, t.values, t.intermediate_values) for t in ended]

    assert history(again) == history(driver)
    assert {state for _, state, _, _ in history(driver)} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_optuna_gets_both_values_of_finished_trials_and_none_of_stopped_ones(
    tmp_path: Path,
) -> None:
    storage = f"sqlite:///{tmp_path}/studies.db"
    driver = Driver(tmp_path / "x", objective=TWO, storage=storage)
    first, second, third = driver.start(), driver.start(), driver.start()
    driver.report(first, 64, 0.8, 0.1, 0.2)
    driver.report(first, 128, 0.9, 0.1, 0.5)
    driver.finish(first, 512, 0.85, 0.1, 0.9)
    assert driver.report(second, 64, 0.6, 0.7, 0.9) == TrialScheduler.STOP
    driver.fail(third)
    study = optuna.load_study(study_name=driver.records.study_name, storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == TWO
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    # This is the report with the best accuracy, with the drift of the same report.
    assert [trial.values for trial in study.trials] == [[0.9, 0.5], None, None]
    # A trial that went on after a kill has its reports in the record, and none in the study.
    driver.report(driver.start(), 64, 0.9, 0.05, 0.1)
    again = Driver(tmp_path / "x", objective=TWO, storage=storage)
    assert isinstance(again.start().config, dict)


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "grid"])
def test_each_sampler_goes_on_past_finished_and_stopped_trials(tmp_path: Path, name: str) -> None:
    rates = [10 ** (-5 + number / 8) for number in range(24)]
    space = {"optim.learning_rate": {"choice": rates}} if name == "grid" else RATE
    driver = Driver(tmp_path, objective=TWO, sampler={"name": name}, trials=24, space=space)
    points = []
    running = [driver.start()]
    while running:
        if (another := driver.start()) is not None and another != "FINISHED":
            running.append(another)
        trial = running.pop(0)
        points.append(rate := trial.config["task"].point["optim.learning_rate"])
        if driver.report(trial, 64, 0.7, rate, rate) == TrialScheduler.CONTINUE:
            driver.finish(trial, 512, 0.7, rate, rate)
    assert len(set(points)) == 24
    assert {record.state for record in driver.records.trials.values()} == {"finished", "stopped"}


def test_tpe_counts_the_stopped_and_puts_them_behind_all_finished_ones(tmp_path: Path) -> None:
    """tune/search/study.py relies on this behaviour of Optuna."""
    driver = Driver(tmp_path, objective=TWO, trials=12)
    for number in range(12):
        trial = driver.start()
        worse = 0.1 * (number % 3 > 0)
        if driver.report(trial, 64, 0.7, worse, worse) == TrialScheduler.CONTINUE:
            driver.finish(trial, 512, 0.7 - number / 100, 0.5, worse)
    trials = driver.study.trials
    complete = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    assert 1 < len(complete) < 12
    for count in (1, len(complete), 12):
        good, bad = _split_trials(driver.searcher._study._study, trials, count)
        assert (len(good), len(good) + len(bad)) == (count, 12)
        assert count == 12 or {trial.number for trial in good} <= set(complete)


# The second is dominated by the first. The front is 0, 2, 3, 4.
PLAYED = [(0.90, 0.50), (0.89, 0.60), (0.88, 0.20), (0.70, 0.10), (0.60, 0.05)]


def played(folder: Path, **content: Any) -> Driver:
    driver = Driver(folder, objective=TWO, trials=len(PLAYED), **content)
    trials = [driver.start() for _ in PLAYED]
    for trial, (accuracy, drift) in zip(trials, PLAYED, strict=True):
        finish(driver, trial, accuracy, drift)
    return driver


def numbers(ids: list[str]) -> list[int]:
    return [int(trial.rpartition("-")[2]) for trial in ids]


def test_the_exports_of_the_front_are_kept(tmp_path: Path) -> None:
    driver = played(tmp_path, keep_best=3)
    kept = [each.stamp.trial for each in exports(driver.records)]
    assert numbers(kept) == [0, 2, 3]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(kept)
    # A trial of the second front is kept as long as the first front is too small.
    other = Driver(tmp_path / "few", objective=TWO, keep_best=3)
    for accuracy, drift in PLAYED[:3]:
        finish(other, other.start(), accuracy, drift)
    kept = [each.stamp.trial for each in exports(other.records)]
    assert numbers(kept) == [0, 2, 1]


def test_the_best_of_the_front_wins_by_the_same_rule_as_with_one_objective(tmp_path: Path) -> None:
    driver = played(tmp_path / "clear")
    assert driver.start() == "FINISHED"
    assert driver.final_tasks.end.stamp is not None
    assert numbers([driver.final_tasks.end.stamp.trial]) == [0]
    # The second is within one standard error of the first and has the larger soft share.
    near = Driver(tmp_path / "near", objective=TWO, trials=2)
    first, second = near.start(), near.start()
    finish(near, first, 0.90, 0.50)
    finish(near, second, 0.895, 0.20, scale=5.0)
    assert near.start() == "FINISHED"
    assert near.final_tasks.end.stamp is not None
    assert numbers([near.final_tasks.end.stamp.trial]) == [1]


def test_a_trial_that_failed_is_never_on_the_front_and_does_not_win(tmp_path: Path) -> None:
    driver = Driver(tmp_path, objective=TWO, trials=3, confirm={"finalists": 2, "seeds": 1})
    trials = [driver.start() for _ in range(3)]
    # This report would be the best, but its trial fails later.
    driver.report(trials[0], 64, 0.99, 0.1, 0.01)
    export(driver, trials[0], 0.99)
    driver.fail(trials[0])
    finish(driver, trials[1], 0.9, 0.5)
    finish(driver, trials[2], 0.8, 0.3)
    ids = [trial.config["task"].name for trial in trials]
    assert [record.id for record in driver.records.front()] == ids[1:]
    assert [record.id for record in driver.records.ranked(driver.records.searched)] == [
        *ids[1:], ids[0],
    ]  # fmt: skip
    assert driver.records.best() is driver.records.trials[ids[1]]
    assert [record.id for record in finalists(driver.config, driver.records)] == ids[1:]
    stamp = promote_to_winner(driver.records)
    assert stamp is not None
    assert stamp.trial == ids[1]


def test_finalists_come_from_the_front_and_then_the_next(tmp_path: Path) -> None:
    driver = played(tmp_path, confirm={"finalists": 5, "seeds": 1})
    best = [record.id for record in finalists(driver.config, driver.records)]
    assert numbers(best) == [0, 2, 3, 4, 1]


def test_finalists_are_compared_by_the_same_rule(tmp_path: Path) -> None:
    driver = played(tmp_path, confirm={"finalists": 3, "seeds": 1})
    # The first was lucky: with the new seed it is worse. The third is almost as good as the second.
    for accuracy, drift in [(0.80, 0.50), (0.88, 0.30), (0.87, 0.12)]:
        finish(driver, driver.start(), accuracy, drift)
    driver.start()
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert numbers([confirmation.winner]) == [2]
    assert confirmation.finalists[0].second == confirmation.finalists[0].drift
    assert numbers(confirmation.tied) == [3]
    assert "it is tied with" in confirmation.decided_by


def test_points_of_an_earlier_search_come_from_its_front(tmp_path: Path) -> None:
    played(tmp_path / "old")
    records = Records(RunFolder.at(tmp_path / "old"), Objective.of(TWO))
    earlier = EarlierPoints(run=str(tmp_path / "old"), best=4)
    found = with_earlier_points(config().model_copy(update={"points": earlier}))
    trials = list(records.trials.values())
    assert found.points == [trials[number].config for number in (0, 2, 3, 4)]


def test_the_front_is_shown_wherever_the_trials_are() -> None:
    results = simulated(24, objective=TWO, hub={"repo": "me/x"})
    front = [trial for trial in results.trials if trial.id in results.front]
    others = [trial for trial in results.trials if trial.id not in results.front and trial.metrics]
    key = results.objective.key
    assert not any(beats(key(o.metrics), key(f.metrics)) for f in front for o in others)
    assert results.winner is not None
    assert results.winner.trial == results.front[0]

    results.winner.sampled_kl = SampledKl(mean=12.34, interval=[10.0, 15.0])
    text = terminal.render(results, rows=1)
    assert "have a KL of 12.3 nats from the base (95 % interval 10 to 15)" in text
    rows = [line for line in text.splitlines() if line.startswith("abc123-")]
    assert [row.split()[0] for row in rows] == results.front
    assert all(" * " in row for row in rows)
    count = f"* the Pareto front of eval/accuracy and eval/drift: {len(front)} of 24 trials"
    assert f"{count}; the winner is the one with the best eval/accuracy" in text
    assert simulated(24).describe_front() == ""

    html = page.render(results)
    assert f"{results.winner.trial} won" in html
    assert "KL from the base of 12.3 nats per answer" in " ".join(html.split())
    for figure in ("history-1", "importance-1", "curves-1", "slices-9", "pareto-0"):
        assert f'id="{figure}"' in html
    assert "compared the trials at the rungs by eval/nll and eval/drift" in " ".join(html.split())

    publishing = model_card.Publishing(
        "me/x", None, None, model_card.License("mit"), "full", "float32", {}
    )
    results.data = {"pairs": {"train": 9, "eval": 9, "test": 99}, "dropped": {}}
    results.winner.test.metrics.update(nll=0.6, margin=2.0)
    shown = str(model_card.render(results, publishing))
    assert "maximise eval/accuracy and minimise eval/drift on held-out pairs" in shown
    assert "ASHA on eval/nll and eval/drift (Pareto fronts)" in shown
    assert count.removeprefix("* ") in shown
    assert "its KL from the base on its own sampled answers is 12.3 nats" in shown
    assert [metric["name"] for metric in definition(config())["metrics"]] == TWO


@pytest.mark.parametrize(
    ("objective", "corner"), [(TWO, (0, 0.5)), (["eval/nll", "eval/margin"], (0, 0.693147))]
)
def test_no_point_lies_on_the_better_side_of_the_line(
    objective: list[str], corner: tuple[float, float]
) -> None:
    stopping = {"metric": "eval/nll"}
    results = simulated(24, objective=objective, stopping=stopping)
    from tune.report.figures import draw
    from tune.report.scene import Scene

    line, *points = draw(Scene(results))["pareto"][0].data  # type: ignore[union-attr]
    signs = [1 if term.mode == "max" else -1 for term in results.objective.parts]
    corners = [(signs[0] * y, signs[1] * x) for x, y in zip(line.x, line.y, strict=True)]
    assert list(line.x) == sorted(line.x)
    for trace in points:
        for x, y in zip(trace.x, trace.y, strict=True):
            assert not any(beats((signs[0] * y, signs[1] * x), other) for other in corners)
    assert corner in [(x, y) for trace in points for x, y in zip(trace.x, trace.y, strict=True)]


def test_finalists_and_winner_are_sampled_where_drift_is_an_objective(tmp_path: Path) -> None:
    def until_the_test_split(name: str, **content: Any) -> tuple[Driver, dict[str, Any]]:
        driver = played(tmp_path / name, trainer="trl", **content)
        while (trial := driver.start()).config["task"].name != "test-split":
            finish(driver, trial, 0.8, 0.3)
        return driver, trial.config["task"].sampled

    driver, sampled = until_the_test_split("alone")
    assert list(sampled) == [driver.final_tasks.end.stamp.trial]  # type: ignore[index]
    driver, sampled = until_the_test_split("confirmed", confirm={"finalists": 2, "seeds": 1})
    confirmation = driver.final_tasks.end.confirmation
    assert confirmation is not None
    assert numbers(sorted(sampled)) == [0, 2]
    assert all((tmp_path / "confirmed" / folder).is_dir() for folder in sampled.values())
    kl = {trial: SampledKl(mean=float(n), interval=[0, 9]) for n, trial in enumerate(sampled)}
    report = TestReport(test=Numbers(), base=Numbers(), sampled_kl=kl)
    driver.final_tasks.take(TestTask(run="x"), Outcome(Ending.FINISHED, test=report))
    assert {each.trial: each.sampled_kl for each in confirmation.finalists} == kl
    assert "sampled KL" in page.render(simulated(9).model_copy(
        update={"confirmation": confirmation}))  # fmt: skip

    other = Driver(tmp_path / "one", trainer="trl", trials=1)
    finish(other, other.start(), 0.8, 0.3)
    assert other.start().config["task"].sampled == {}
