"""TPE in a search of thousands of trials: which trials a proposal is made from."""

import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.helpers.driver import TWO, Driver
from tune.search import tpe
from tune.search.tpe import WindowedTPE

AXIS = {"x": FloatDistribution(0, 1)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tpe, "LATEST", 30)
    monkeypatch.setattr(tpe, "BEST", 10)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def ended(value: float, second: float | None = None) -> FrozenTrial:
    values = [value] if second is None else [value, second]
    return create_trial(values=values, params={"x": 0.5}, distributions=AXIS)


def seen(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials from which the next proposal is made, without its own."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    sampler = study.sampler
    assert isinstance(sampler, WindowedTPE)
    trials = sampler._seen(study, study.trials[trial.number])._get_trials(deepcopy=False)
    return [each.number for each in trials if each.number != trial.number]


def make(values: Sequence[tuple[float, ...]], *directions: str) -> optuna.Study:
    study = optuna.create_study(directions=directions, sampler=WindowedTPE(0))
    study.add_trials([ended(*own) for own in values])
    return study


def test_while_all_trials_are_kept_proposals_are_those_of_optunas_tpe() -> None:
    proposed = []
    for sampler in (WindowedTPE(0), TPESampler(multivariate=True, group=True, seed=0)):
        study = optuna.create_study(direction="minimize", sampler=sampler)
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=40)
        proposed.append([trial.params["x"] for trial in study.trials])
    assert proposed[0] == proposed[1]


def test_the_best_and_the_latest_and_those_that_run_are_kept() -> None:
    study = make([(float(-number),) for number in range(50)], "maximize")
    running = study.ask()
    running.suggest_float("x", 0, 1)
    study.add_trials([ended(-100.0 - number) for number in range(40)])
    assert seen(study) == [*range(10), running.number, *range(61, 91)]
    # Trials that end later count too, and worse ones leave the window for better ones.
    study.tell(running, 1.0)
    study.add_trials([ended(2.0) for _ in range(30)])
    assert seen(study) == [91, *range(92, 122)]
    assert len(study.trials) == 123


def test_the_best_are_those_that_optuna_takes_for_the_good_ones() -> None:
    draw = random.Random(0)
    study = make([], draw.choice(["minimize", "maximize"]))
    for _ in range(200):
        is_stopped, reports = draw.random() < 0.8, draw.randint(0, 3)
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if is_stopped else TrialState.COMPLETE,
                value=None if is_stopped else draw.random(),
                params={"x": 0.5},
                distributions=AXIS,
                intermediate_values={64 * (n + 1): draw.random() for n in range(reports)},
                constraints={"eval/drift": draw.uniform(-1, 1)},
            )
        )
    for count in (5, 40, 120, 180):
        good = _split_trials(study, study.trials, count)[0]
        standings = tpe._standings(study.trials, [tpe._sign(study.direction)])
        best = sorted(range(200), key=standings.__getitem__)[:count]
        assert {trial.number for trial in good} == set(best)


def test_with_two_objectives_the_first_fronts_are_kept() -> None:
    front = [(number / 10, -number / 10) for number in range(6)]
    behind = [(number / 10 - 5, -number / 10 - 5) for number in range(6)]
    study = make([*behind, *front, *[(-99.0, -99.0)] * 30], "maximize", "maximize")
    assert {*range(6, 12)} <= set(seen(study))
    study = make([*front, *behind, *[(-99.0, -99.0)] * 30], "maximize", "maximize")
    assert {*range(6)} <= set(seen(study))


@pytest.mark.parametrize("objective", ["eval/accuracy", TWO])
def test_a_search_goes_on_beyond_the_window_and_its_storage_has_all(
    tmp_path: Path, objective: object
) -> None:
    space = {"optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
             "lora": {"choice": [None, {}]},
             "lora.r": {"int": [2, 64], "when": {"lora": "not null"}}}  # fmt: skip
    driver = Driver(
        tmp_path / "run", trials=61, space=space, objective=objective,
        storage=str(tmp_path / "journal.log"), stopping={"name": "none"},
    )  # fmt: skip
    for number in range(60):
        trial = driver.start()
        rate = trial.config["task"].point["optim.learning_rate"]
        driver.finish(trial, 512, 0.5 + rate, drift=1 + number % 3)
    driver.start()
    kept = driver.study._study.sampler._window._kept
    assert len(kept) <= 30 + 10 + 1
    assert [trial.state for trial in driver.study.trials[:60]] == [TrialState.COMPLETE] * 60
    best = max(driver.records.searched[:60], key=lambda record: record.metrics["eval/accuracy"])
    assert best.id in {trial.user_attrs["trial"] for trial in kept if trial.user_attrs}
