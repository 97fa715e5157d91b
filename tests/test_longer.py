"""Survivors of a finished search train on."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_train.config import OptimConfig
from dpo_train.errors import InputError
from dpo_train.parts import override
from dpo_train.simulated import SimulatedSession
from tests.conftest import Run
from tests.driver import Driver, export
from tests.simulated_search import YAML, ended
from tune.__main__ import main
from tune.checkpoints import last_whole_state
from tune.config import load_search
from tune.longer import keep_end, lengthen, prune_ends
from tune.objective import Objective
from tune.records import Records, read_records
from tune.replay import replay
from tune.results import assemble, load_results, write_results
from tune.runs import is_finished, refuse_other_search, write_yaml


def search(folder: Path, **content: Any) -> Driver:
    """A finished search of four trials, the better the later; the ends of the best are kept."""
    driver = Driver(folder, keep_best=2, **content)
    write_yaml(folder, driver.config)
    for number in range(4):
        trial = driver.start()
        export(driver, trial, 0.6 + number / 10)
        point = driver.config.trial(trial.config["point"])
        keep_end(folder, driver.config, trial.config["trial"], point, 512, Path.mkdir)
        driver.finish(trial, 512, 0.6 + number / 10)
    write_results(folder, assemble(driver.config, driver.records, None, {}, "all 4 trials"))
    return driver


def test_the_ends_of_the_best_are_kept_and_no_others(tmp_path: Path) -> None:
    driver = search(tmp_path)
    ids = list(driver.records.trials)
    assert sorted(path.name for path in (tmp_path / "ends").iterdir()) == ids[2:]
    keep_end(tmp_path, driver.config, ids[0], driver.config, 512, Path.mkdir)
    assert not (tmp_path / "ends" / ids[0]).exists()
    again = tmp_path / "ends" / ids[3] / "512" / "session" / "again"
    keep_end(tmp_path, driver.config, ids[3], driver.config, 512, lambda f: (f / "again").mkdir(
        parents=True))  # fmt: skip
    assert again.is_dir()
    (tmp_path / "ends" / ids[0]).mkdir()
    prune_ends(tmp_path, driver.config)
    assert sorted(path.name for path in (tmp_path / "ends").iterdir()) == ids[2:]


def test_survivors_are_opened_again_where_they_ended(tmp_path: Path) -> None:
    driver = search(tmp_path)
    assert is_finished(tmp_path)
    ids = list(driver.records.trials)
    told = {"sweep": None, "told": dict.fromkeys(ids, "offline")}
    (tmp_path / "wandb.json").write_text(json.dumps(told))
    before = {record.id: record for record in read_records(tmp_path)}
    lengthen(tmp_path, 3)
    assert not is_finished(tmp_path)
    assert load_search(tmp_path / "search.yaml").optim.epochs == 3
    after = {record.id: record for record in read_records(tmp_path)}
    assert [after[trial].state for trial in ids] == ["finished"] * 2 + ["pending"] * 2
    assert [after[t].curve for t in ids] == [before[t].curve for t in ids]
    assert [last_whole_state(tmp_path, trial)[0] for trial in ids] == [0, 0, 512, 512]
    assert list(json.loads((tmp_path / "wandb.json").read_text())["told"]) == ids[:2]
    assert not (tmp_path / "results.json").exists()
    refuse_other_search(tmp_path, driver.config)  # the same `run` goes on with it
    two = driver.config.model_copy(update={"optim": OptimConfig(epochs=2)})
    with pytest.raises(InputError, match="holds another search .optim.epochs: 3 there, 2 here"):
        refuse_other_search(tmp_path, two)


def test_fewer_epochs_than_a_search_began_with_are_another_search(tmp_path: Path) -> None:
    driver = search(tmp_path, optim={"epochs": 3})
    one = driver.config.model_copy(update={"optim": OptimConfig(epochs=1)})
    with pytest.raises(InputError, match="optim.epochs: 3 there, 1 here"):
        refuse_other_search(tmp_path, one)


def test_a_search_whose_hours_are_spent_stays(tmp_path: Path) -> None:
    driver = search(tmp_path, budget={"hours": 1})
    driver.records.run.sittings = [(0.0, 7200.0)]
    driver.records.note_longer(1)
    with pytest.raises(InputError, match="budget.hours: 1 spent"):
        lengthen(tmp_path, 2)


@pytest.mark.parametrize("given", ["2", "x1", "x", "+2", "x2.5"])
def test_what_is_no_multiple_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    search(tmp_path)
    assert main(["resume", str(tmp_path), "--max-pairs", given]) == 2
    assert f"--max-pairs: {given!r} is no multiple; type `x2` or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"optim": {"schedule": "linear"}}, "schedule linear goes by the planned end"),
        ({"space": {"optim.epochs": {"int": [1, 4]}}}, "tries optim.epochs itself"),
        ({"trials": 5}, "has not ended; type `dpo-tune resume"),
    ],
)
def test_a_search_that_does_not_allow_it_is_refused_and_stays(
    tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    search(tmp_path, **content)
    before = (tmp_path / "search.yaml").read_text()
    with pytest.raises(InputError, match=said):
        lengthen(tmp_path, 2)
    assert (tmp_path / "search.yaml").read_text() == before
    assert (tmp_path / "results.json").exists()


def test_without_a_whole_end_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    driver = search(tmp_path)
    for trial in list(driver.records.trials)[2:]:
        (tmp_path / "ends" / trial / "512" / "more").write_text("than was sealed")
    with pytest.raises(InputError, match="no finished trial's last state is kept in .*ends"):
        lengthen(tmp_path, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_the_survivors_of_a_search_of_two_objectives_train_on(
    tmp_path: Path, dpo_tune: Run
) -> None:
    text = YAML.replace("trials: 12", "trials: 6") + "objective: [eval/accuracy, eval/drift]\n"
    (tmp_path / "sim.yaml").write_text(text)
    run = tmp_path / "runs" / "sim"
    first = dpo_tune("run", "sim.yaml", "--set", "simulated.noise=0.02")
    assert first.returncode == 0, first.stderr
    before = ended(run)
    kept = {path.name for path in (run / "ends").iterdir()}
    assert kept
    assert kept <= {trial for trial, record in before.items() if record["state"] == "finished"}

    more = dpo_tune("resume", run, "--max-pairs", "x2")
    assert more.returncode == 0, more.stderr
    after = ended(run)
    assert {t: r for t, r in after.items() if t not in kept} == {
        t: r for t, r in before.items() if t not in kept
    }
    config = load_search(run / "search.yaml")
    for trial in kept:
        record = after[trial]
        assert record["curve"][:8] == before[trial]["curve"]
        planned = SimulatedSession(override(config.base_trial(), record["config"]))
        numbers = [planned.advance() for _ in record["curve"]]
        assert len(numbers) > 8
        assert [r["eval/nll"] for r in record["curve"]] == [n["eval/nll"] for n in numbers]
        assert replay(run, trial).is_exact
    results = load_results(run)
    assert results.front == [t.id for t in results.objective.front(results.trials)]
    assert results.winner is not None
    assert f"* the Pareto front of eval/accuracy and eval/drift: {len(results.front)} of 6" in (
        more.stdout
    )
    records = Records(run, Objective.of(["eval/accuracy", "eval/drift"]))
    assert results.winner.trial == results.front[0] == records.best().id  # type: ignore[union-attr]
