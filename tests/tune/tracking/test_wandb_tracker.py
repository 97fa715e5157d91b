"""What the child process sends to W&B, from records that the test writes, without Ray."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.recorded_search import Search, wait_until
from tests.helpers.wandb_operations import Sweep
from tests.helpers.wandb_runs import reports, wandb
from tests.helpers.wandb_server import WandbServer
from tune.run_folder.folder import open_run
from tune.run_folder.results import Publication, load_results, write_results
from tune.search import resume
from tune.tracking.child_process import CLOSE_SECONDS, TrackingProcess
from tune.tracking.trackers import how_to_send


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WANDB_API_KEY": "0" * 40}, "user is not logged in"),
        ({"WANDB_API_KEY": "short"}, "API key must have 40+ characters, has 5"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "runs are written to disk instead"),
    ],
    ids=["wrong key", "short key", "no server"],
)
def test_an_unreachable_server_gives_one_warning_and_files(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    search = Search(tmp_path)
    tracking = TrackingProcess(search.run, search.config)
    search.report(3)
    search.end()
    assert search.close(tracking) < CLOSE_SECONDS + 2  # the kill itself, on a busy machine
    warned = capfd.readouterr().err
    assert message in warned
    assert warned.count("\n") == 1
    assert re.match(r"W&B: 2 runs wait on disk; to send: \S*wandb sync ", how_to_send(search.run))
    assert server.runs == {}


def test_where_nobody_is_logged_in_the_end_alone_says_so_with_what_to_type(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    search = Search(tmp_path)
    tracking = TrackingProcess(search.run, search.config)
    search.report(3)
    search.end()
    search.close(tracking)
    assert capfd.readouterr().err == ""
    message = how_to_send(search.run)
    assert re.match(r"W&B: 2 runs wait on disk; to send: \S*wandb login && \S*wandb sync ", message)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "netrc").write_text(f"machine {server.url[7:]} login user password x\n")
    assert "wandb login" not in how_to_send(search.run)


@pytest.mark.slow
def test_runs_that_begin_after_the_server_was_lost_are_written_to_disk(
    tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.sweeps["theirs"] = Sweep("theirs", "")
    search = Search(tmp_path, sweep="theirs")
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    wait_until(lambda: server.runs)
    server.ill = "errors"
    search.begin(1e-4)
    search.report(2)
    wait_until(lambda: "from now on runs are written to disk" in capfd.readouterr().err)
    search.end()
    assert search.close(tracking) < CLOSE_SECONDS + 2  # the kill itself, on a busy machine
    assert how_to_send(search.run).startswith("W&B: 3 runs wait on disk")
    server.ill = ""
    wandb(search.folder, "sync", "--yes", search.folder / "wandb")
    for trial_id in search.ids:
        run = server.runs[trial_id]
        assert reports(run.rows) == search.records.trials[trial_id].curve
        assert (run.state, run.sent["sweep"]) == ("finished", "theirs")
    assert list(server.sweeps) == ["theirs"]
    assert server.sweeps["theirs"].state == "RUNNING"
    assert server.calls["UpsertSweep"] == 0


def test_what_the_server_refused_stays_on_disk(tmp_path: Path, server: WandbServer) -> None:
    server.ill = "forgets"
    search = Search(tmp_path)
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    search.end()
    search.close(tracking)
    assert how_to_send(search.run).startswith("W&B: 2 runs wait on disk")
    assert json.loads((search.folder / "wandb.json").read_text())["told"] == {}
    server.ill = ""
    wandb(search.folder, "sync", "--yes", search.folder / "wandb")
    (trial_id,) = search.ids
    assert reports(server.runs[trial_id].rows) == search.records.trials[trial_id].curve


def test_runs_on_disk_are_sent_when_a_later_driver_session_is_online(
    tmp_path: Path, server: WandbServer
) -> None:
    search = Search(tmp_path, mode="offline")
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    search.close(tracking)
    assert how_to_send(search.run).startswith("W&B: 1 run waits on disk")
    assert server.calls.total() == 0

    wandb_online = search.config.wandb.model_copy(update={"mode": "online"})
    online = search.config.model_copy(update={"wandb": wandb_online})
    resume.adopt(open_run(search.run), online)
    tracking = TrackingProcess(search.run, online)
    search.report(1)
    search.end()
    search.close(tracking)
    assert how_to_send(search.run) == ""
    (trial_id,) = search.ids
    assert reports(server.runs[trial_id].rows) == search.records.trials[trial_id].curve
    assert server.runs[trial_id].state == "finished"


def test_a_winner_that_was_pushed_is_an_artifact_by_its_address(
    tmp_path: Path, server: WandbServer
) -> None:
    url = "https://huggingface.co/acme/won/tree/" + "0" * 40
    search = Search(tmp_path)
    tracking = TrackingProcess(search.run, search.config)
    search.report(1)
    search.end()
    published = Publication(repo="acme/won", commit="0" * 40, url=url)
    results = load_results(search.folder).model_copy(update={"published": published})
    write_results(search.folder / "results.json", results)
    search.close(tracking)
    assert how_to_send(search.run) == ""
    assert {made["state"] for made in server.artifacts.values()} == {"COMMITTED"}
    made = server.artifacts["x-winner"]
    assert made["artifactTypeName"] == "model"
    (search_run,) = (run for run in server.runs.values() if "x-winner.json" in run.files)
    manifest = json.loads(search_run.files["x-winner.json"])
    assert manifest["contents"]["repository"]["ref"] == url


def test_a_search_that_wants_no_tracker_starts_no_process(tmp_path: Path) -> None:
    search = Search(tmp_path, mode="disabled")
    tracking = TrackingProcess(search.run, search.config)
    assert search.close(tracking) < 1
    assert not (search.folder / "wandb").exists()
    assert not (search.folder / "tracking").exists()
