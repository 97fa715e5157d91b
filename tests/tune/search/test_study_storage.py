"""Optuna's own tools can read the study that a search keeps in a storage."""

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dpo_train.errors import InputError
from tests.conftest import Run
from tests.helpers.driver import Driver
from tune.config.checks import check_storage
from tune.search.study_storage import open_storage


def play(driver: Driver) -> None:
    """Play one trial of each ending, and one that stays open."""
    best, weak, bad, _ = (driver.start() for _ in range(4))
    driver.report(best, 64, 0.9, nll=0.3)
    assert driver.report(weak, 64, 0.6, nll=0.6) == "STOP"
    driver.fail(bad)
    driver.finish(best, 512, 0.95)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_study_is_live_in_its_storage_and_rebuilt_once_when_the_search_goes_on(
    tmp_path: Path, kind: str
) -> None:
    run, file = tmp_path / "runs" / "x", tmp_path / "studies" / "study"
    url = f"sqlite:///{file}" if kind == "sqlite" else str(file)
    play(Driver(run, storage=url))

    def load() -> optuna.Study:
        storage = (
            optuna.storages.RDBStorage(url)
            if kind == "sqlite"
            else optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        )
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage)

    study = load()
    assert study.study_name.startswith("x-")
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    ]  # fmt: skip
    assert study.trials[0].intermediate_values == {64: 0.9, 512: 0.95}
    assert study.trials[0].user_attrs["trial"].endswith("-000")

    again = Driver(run, storage=url)
    again.start()
    study = load()
    assert len(study.trials) == 4
    assert study.best_trial.values == [0.95]
    assert study.trials[3].user_attrs["trial"].endswith("-003")


@pytest.mark.parametrize("at", ["report", "ask", "tell"])
def test_a_storage_that_is_lost_costs_the_search_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str
) -> None:
    driver = Driver(tmp_path / "x", storage=f"sqlite:///{tmp_path}/study.db")
    first, second = driver.start(), driver.start()
    driver.report(first, 64, 0.9)
    if at != "report":
        driver.report(second, 64, 0.9)
    (tmp_path / "study.db").unlink()
    if at == "ask":
        third = driver.start()
        assert third.config["task"].name.endswith("-002")
    if at == "report":
        driver.report(second, 64, 0.9)
    if at == "tell":
        driver.fail(second)
    else:
        driver.finish(second, 512, 0.95)
    driver.finish(first, 512, 0.95)
    assert capsys.readouterr().out.count("the search goes on without it") == 1
    done = [trial for trial in driver.study.trials if trial.state == TrialState.COMPLETE]
    ended = 1 if at == "tell" else 2
    assert [trial.intermediate_values for trial in done] == [{64: 0.9, 512: 0.95}] * ended
    assert len(driver.study.trials) == len(driver.records.trials)


def test_a_broken_storage_costs_a_resumed_search_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "journal"
    play(Driver(tmp_path / "x", storage=str(file)))
    with file.open("a") as journal:
        journal.write('{"op_code": 5, "work')  # a kill can leave a line like this
    again = Driver(tmp_path / "x", storage=str(file))
    assert isinstance(again.start().config, dict)
    assert capsys.readouterr().out.count("the search goes on without it") == 1
    assert len(again.study.trials) == 4


def test_the_lock_of_a_killed_driver_does_not_hold_up_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("studies/log")
    assert storage is not None
    Path("studies/log.lock").write_text("")
    os.utime("studies/log.lock", (0, 0))
    assert storage.get_all_studies() == []


def test_two_searches_of_one_name_stay_two_studies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for folder in ("here", "there"):
        play(Driver(tmp_path / folder / "x", storage=url))
    names = optuna.get_all_study_names(optuna.storages.RDBStorage(url))
    assert len(set(names)) == 2


def test_a_password_does_not_go_into_a_search() -> None:
    with pytest.raises(InputError, match="PGPASSWORD"):
        check_storage("postgresql://me:secret@host/name")
    with pytest.raises(InputError, match="PGPASSWORD"):
        check_storage("postgresql://host/name?user=me&password=secret")
    with pytest.raises(InputError, match="is not a valid one"):
        check_storage("postgresql://[bad")
    check_storage("postgresql://me@host/name")


def test_a_storage_that_cannot_be_opened_stops_the_search_before_it_begins(
    tmp_path: Path, dpo_tune: Run
) -> None:
    yaml = tmp_path / "x.yaml"
    yaml.write_text("trainer: simulated\ntrials: 2\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n")
    refused = dpo_tune("run", yaml, "--set", "storage=mongodb://host/name")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: storage: 'mongodb://host/name' can't be opened")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert open_storage(None) is None
