"""The child that tells W&B, over records that the test writes: a search without Ray."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_train.config_base import parse
from tests.helpers.wandb_operations import Sweep
from tests.helpers.wandb_runs import reports, wandb
from tests.helpers.wandb_server import WandbServer
from tune.config.checks import check
from tune.config.objective import Objective
from tune.config.schema import SearchConfig
from tune.run_folder import yaml_file
from tune.run_folder.records import Records, create_run
from tune.run_folder.results import Cost, Publication, Results, load_results, write_results
from tune.run_folder.step import Step
from tune.search import resume
from tune.tracking.child_process import CLOSE_SECONDS, Tracker, how_to_send


class Search:
    """A run folder whose records the test writes, of one trial until another begins."""

    def __init__(self, folder: Path, **wanted: Any) -> None:
        space = {"optim.learning_rate": {"log_uniform": [1e-5, 1e-2]}}
        content = {"name": "x", "trainer": "simulated", "trials": 2, "space": space}
        content["wandb"] = {"mode": "online", **wanted}
        self.config = check(parse(SearchConfig, content, {}, "x.yaml"))
        self.folder = folder / "x"
        create_run(self.folder, Path(), "cpu")
        yaml_file.write_yaml(self.folder, self.config)
        objective = Objective(metric="eval/accuracy", mode="max")
        self.records = Records(self.folder, objective)
        self.records.begin_driver_session()
        self.ids: list[str] = []
        self.begin(1e-3)

    def begin(self, rate: float) -> None:
        self.ids.append(self.records.next_id())
        self.records.add(self.ids[-1], {"optim.learning_rate": rate})
        self.records.begin(self.ids[-1])

    def report(self, times: int) -> None:
        for trial_id in self.ids:
            for _ in range(times):
                pairs = self.records.trials[trial_id].pairs_seen + 64
                report = {"pairs_seen": pairs, "eval/accuracy": 0.5, "eval/drift": 0.1}
                self.records.report(trial_id, Step(report, time.time(), 1.0))

    def end(self) -> None:
        for trial_id in self.ids:
            self.records.end(trial_id, "finished")
        trials = list(self.records.trials.values())
        objective = self.records.objective
        results = Results(
            name="x", objective=objective, base={}, winner=None, trials=trials, cost=Cost()
        )
        write_results(self.folder, results)

    def close(self, tracker: Tracker) -> float:
        began = time.monotonic()
        tracker.close()
        return time.monotonic() - began


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WANDB_API_KEY": "0" * 40}, "user is not logged in"),
        ({"WANDB_API_KEY": "short"}, "API key must have 40+ characters, has 5"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "runs are written to disk instead"),
    ],
    ids=["wrong key", "short key", "no server"],
)
def test_a_server_out_of_reach_is_one_warning_and_files(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    search = Search(tmp_path)
    tracker = Tracker(search.folder, search.config.wandb)
    search.report(3)
    search.end()
    assert search.close(tracker) < CLOSE_SECONDS + 2  # the kill itself, on a busy machine
    warned = capfd.readouterr().err
    assert said in warned
    assert warned.count("\n") == 1
    assert how_to_send(search.folder).startswith("W&B: 2 runs wait on disk; to send: wandb sync")
    assert server.runs == {}


@pytest.mark.slow
def test_what_begins_after_the_server_was_lost_is_written_to_disk(
    tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.sweeps["theirs"] = Sweep("theirs", "")
    search = Search(tmp_path, sweep="theirs")
    tracker = Tracker(search.folder, search.config.wandb)
    search.report(2)
    wait_until(lambda: server.runs)
    server.ill = "errors"
    search.begin(1e-4)
    search.report(2)
    wait_until(lambda: "from here on runs are written to disk" in capfd.readouterr().err)
    search.end()
    assert search.close(tracker) < CLOSE_SECONDS + 2  # the kill itself, on a busy machine
    assert how_to_send(search.folder).startswith("W&B: 3 runs wait on disk")
    server.ill = ""
    wandb(search.folder, "sync", "--yes", search.folder / "wandb")
    for trial_id in search.ids:
        told = server.runs[trial_id]
        assert reports(told.rows) == search.records.trials[trial_id].curve
        assert (told.state, told.sent["sweep"]) == ("finished", "theirs")
    assert list(server.sweeps) == ["theirs"]
    assert server.sweeps["theirs"].state == "RUNNING"
    assert server.asked["UpsertSweep"] == 0


def test_what_the_server_refused_stays_on_disk(tmp_path: Path, server: WandbServer) -> None:
    server.ill = "forgets"
    search = Search(tmp_path)
    tracker = Tracker(search.folder, search.config.wandb)
    search.report(2)
    search.end()
    search.close(tracker)
    assert how_to_send(search.folder).startswith("W&B: 2 runs wait on disk")
    assert json.loads((search.folder / "wandb.json").read_text())["told"] == {}
    server.ill = ""
    wandb(search.folder, "sync", "--yes", search.folder / "wandb")
    (trial_id,) = search.ids
    assert reports(server.runs[trial_id].rows) == search.records.trials[trial_id].curve


def test_what_lay_on_disk_is_sent_when_a_later_sitting_goes_online(
    tmp_path: Path, server: WandbServer
) -> None:
    search = Search(tmp_path, mode="offline")
    tracker = Tracker(search.folder, search.config.wandb)
    search.report(2)
    search.close(tracker)
    assert how_to_send(search.folder).startswith("W&B: 1 run waits on disk")
    assert server.asked.total() == 0

    online = search.config.wandb.model_copy(update={"mode": "online"})
    resume.adopt(search.folder, search.config.model_copy(update={"wandb": online}))
    tracker = Tracker(search.folder, online)
    search.report(1)
    search.end()
    search.close(tracker)
    assert how_to_send(search.folder) == ""
    (trial_id,) = search.ids
    assert reports(server.runs[trial_id].rows) == search.records.trials[trial_id].curve
    assert server.runs[trial_id].state == "finished"


def test_a_winner_that_was_pushed_is_an_artifact_by_its_address(
    tmp_path: Path, server: WandbServer
) -> None:
    url = "https://huggingface.co/acme/won/tree/" + "0" * 40
    search = Search(tmp_path)
    tracker = Tracker(search.folder, search.config.wandb)
    search.report(1)
    search.end()
    published = Publication(repo="acme/won", commit="0" * 40, url=url)
    results = load_results(search.folder).model_copy(update={"published": published})
    write_results(search.folder, results)
    search.close(tracker)
    assert how_to_send(search.folder) == ""
    assert {made["state"] for made in server.artifacts.values()} == {"COMMITTED"}
    made = server.artifacts["x-winner"]
    assert made["artifactTypeName"] == "model"
    (told,) = (run for run in server.runs.values() if "x-winner.json" in run.files)
    manifest = json.loads(told.files["x-winner.json"])
    assert manifest["contents"]["repository"]["ref"] == url


def test_a_search_that_wants_no_wandb_starts_no_process(tmp_path: Path) -> None:
    search = Search(tmp_path, mode="disabled")
    tracker = Tracker(search.folder, search.config.wandb)
    assert search.close(tracker) < 1
    assert not (search.folder / "wandb").exists()


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
