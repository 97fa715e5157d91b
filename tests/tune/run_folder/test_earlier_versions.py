"""What this version can do with run folders that version 0.1.0 wrote, and what it can't.

`run_of_0_1_0` is such a folder without its weights: a finished search on the sample, whose
winner is a warm clone, a kind of trial that this version does not train.
"""

import json
import shutil
from pathlib import Path

import pytest

from dpo_train import export, model
from dpo_train.config import OptimConfig, TrainConfig
from dpo_train.errors import InputError
from tests.helpers.driver import Driver
from tests.helpers.run_records import records_of
from tune.__main__ import main
from tune.config.load import load_search
from tune.config.schema import ConfirmConfig
from tune.run_folder.exports import STAMP
from tune.run_folder.folder import open_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.yaml_file import write_yaml
from tune.search.choose_winner import finalists
from tune.search.resume import adopt, is_finished, refuse_other_search

WARM = "ow7ao1-001"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / "run_of_0_1_0", folder)
    base = model.load_base(TrainConfig().model, "cpu")
    policy = base.fresh(trained_in_full=True)
    export.write(policy, base.tokenizer, TrainConfig(), folder / "winner")
    (folder / "winner_trial.json").rename(folder / "winner" / STAMP)
    return folder


def test_it_is_shown_reported_and_published(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"winner {WARM} at 240 pairs" in shown
    assert "(started from the weights of ow7ao1-000)" in shown
    assert main(["report", str(run)]) == 0
    assert WARM in (run / "report.html").read_text()
    options = ["--repo", "someone/old", "--license", "apache-2.0", "--to", str(tmp_path / "pushed")]
    assert main(["push", str(run), *options]) == 0
    assert "the weights of trial ow7ao1-000" in (tmp_path / "pushed" / "README.md").read_text()


def test_a_finished_search_of_0_1_0_is_still_finished(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(run)]) == 0
    assert f"winner {WARM}" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--trials", "+2"]])
def test_a_search_with_a_warm_clone_does_not_go_on(
    run: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    if not more:  # a driver was killed while the clone trained
        path = run / "trials" / f"{WARM}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running"}))
    before = {path: path.read_text() for path in run.rglob("*.[jy]*") if path.is_file()}
    assert main(["resume", str(run), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{WARM} is a warm clone" in line
    assert "points: {from: " in line
    assert {path: path.read_text() for path in before} == before


def test_a_finished_search_of_0_1_0_whose_winner_would_change_is_refused_and_kept(
    run: Path,
) -> None:
    config = load_search(run / "search.yaml")
    (run / "evaluations.json").write_text("{}")
    before = (run / "search.yaml").read_text()
    chosen_otherwise = {"confirm": ConfirmConfig(evaluate="a:b")}
    with pytest.raises(InputError, match=f"{WARM} is a warm clone"):
        adopt(open_run(RunFolder.at(run)), config.model_copy(update=chosen_otherwise))
    assert (run / "search.yaml").read_text() == before
    assert (run / "evaluations.json").exists()
    assert is_finished(open_run(RunFolder.at(run)))


def test_a_warm_clone_is_no_finalist(tmp_path: Path) -> None:
    """The configuration alone does not give the numbers of a warm clone."""
    driver = Driver(tmp_path, trials=2, confirm={"finalists": 1, "seeds": 1})
    for accuracy in (0.7, 0.9):
        driver.finish(driver.start(), 512, accuracy)
    worse, better = driver.records.trials
    assert [record.id for record in finalists(driver.config, driver.records)] == [better]
    path = tmp_path / "trials" / f"{better}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warm": True}))
    records = Records(RunFolder.at(tmp_path), driver.config.goal)
    assert [record.id for record in finalists(driver.config, records)] == [worse]


def test_a_search_of_0_1_0_whose_trials_were_continued_goes_on(tmp_path: Path) -> None:
    """It goes on with `resume`, and with `run` and the YAML that it began with."""
    longer = Driver(tmp_path, trials=1, optim={"epochs": 4})
    write_yaml(tmp_path / "search.yaml", longer.config)
    run_info = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run_info, "times": 2}))
    (tmp_path / "ends" / "x" / "512").mkdir(parents=True)
    epochs = load_search(tmp_path / "search.yaml").optim.epochs
    again = Driver(tmp_path, trials=2, optim={"epochs": epochs})
    again.finish(again.start(), 2048, 0.9)
    (record,) = records_of(tmp_path)
    assert record.state == "finished"
    begun = longer.config.model_copy(update={"optim": OptimConfig(epochs=2)})
    refuse_other_search(RunFolder.at(tmp_path), begun)
    with pytest.raises(InputError, match="optim.epochs is 4 there, 1 here"):
        refuse_other_search(
            RunFolder.at(tmp_path), begun.model_copy(update={"optim": OptimConfig(epochs=1)})
        )


def test_a_request_for_a_warm_clone_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path)
    first = driver.start()
    request = tmp_path / "requests" / "123" / "request.json"
    request.parent.mkdir(parents=True)
    request.write_text(json.dumps(
        {"kind": "clone", "trial": first.config["task"].name, "point": {}, "warm": True}
    ))  # fmt: skip
    (request.parent / "weights").mkdir()
    driver.start()
    printed = capsys.readouterr().out
    assert "is ignored: warm clones no longer exist" in printed
    assert not (request.parent / "weights").exists()
    assert not any(record.cloned_from for record in records_of(tmp_path))
    assert request.with_suffix(".refused").exists()
