"""Run folders on an object store (moto's S3 server on loopback) and mirrors on several machines."""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import read_yaml
from dpo_train.errors import InputError, StoreError
from dpo_train.storage import mirror
from dpo_train.storage.mirror import CHECKSUMS
from dpo_train.trainers.open import open_session
from tests.conftest import Run, Start
from tests.helpers.driver import Driver, result_of
from tests.helpers.object_store import LOGIN, ObjectStore
from tests.helpers.simulated_search import hurry, wait_until
from tune import load_results, run
from tune.cluster.capacity import bundles
from tune.commands import list_clean
from tune.commands.stop_clone import clone, stop
from tune.config.schema import SearchConfig
from tune.run_folder import driver_lease, exports, trial_state, yaml_file
from tune.run_folder.driver_lease import only_driver
from tune.run_folder.folder import find_run, runs_root
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.trial_record import ENDED
from tune.search import deploy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def store(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    machine(monkeypatch, tmp_path, "here")
    server.empty()
    return server


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Give this process and those that it starts the disk of another machine."""
    monkeypatch.setenv("DPO_TUNE_CACHE", str(tmp_path / "disk of" / name))


def complete(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in {**files, CHECKSUMS: json.dumps(files)}.items():
        (folder / name).write_text(text)
    return folder


def settings(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def half_done(store: ObjectStore, yaml: Path) -> dict[str, Any]:
    """Make a search on the URL whose driver died, and return the record of the trial that ended.
    It still has its saved state. Two open trials have one too, one of them ahead of its record."""
    config = {**read_yaml(yaml), "trials": 4, "stopping": {"name": "none"},
              "runs_dir": store.url, "simulated": {"pairs": 256}}  # fmt: skip
    folder = mirror.local(store.run("sim"))
    (folder / "trials").mkdir(parents=True)
    driver = Driver(folder, **config)
    yaml_file.write_yaml(folder / "search.yaml", driver.config)
    done, ahead, even = driver.start(), driver.start(), driver.start()
    sessions = {}
    for trial, reports in ((done, 4), (ahead, 1), (even, 2)):
        trial_id = trial.config["task"].name
        sessions[trial_id] = session = open_session(
            driver.config.trial(trial.config["task"].point), Path(), "cpu"
        )
        for _ in range(reports):
            report = session.advance().report
            driver.scheduler.on_trial_result(None, trial, result_of(Step(report, 1.0, 1.0)))
            trial_state.save_state(
                RunFolder.at(folder), trial_id, int(report["pairs_seen"]), session.save
            )
        stamp = exports.ExportStamp(
            trial=trial_id, config=trial.config["task"].point, report=report
        )
        rivals = exports.Rivals(driver.records.objective, 3)
        exports.offer_export(RunFolder.at(folder), stamp, rivals, session.export)
    driver.records.end(done.config["task"].name, "finished")  # and then it died
    sessions[ahead.config["task"].name].advance()
    trial_state.save_state(
        RunFolder.at(folder),
        ahead.config["task"].name,
        128,
        sessions[ahead.config["task"].name].save,
    )
    return {done.config["task"].name: store.records("sim")[done.config["task"].name]}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_search_goes_on_from_the_url_alone(
    store: ObjectStore, tmp_path: Path, yaml: Path, dpo_tune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = half_done(store, yaml)
    machine(monkeypatch, tmp_path, "a terminal's")
    clone(store.run("sim"), next(iter(before)), {"dpo.beta": 0.2})
    machine(monkeypatch, tmp_path, "another")
    done = dpo_tune("resume", store.run("sim"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the winner is in '{store.run('sim/winner')}'" in done.stdout
    after = store.records("sim")
    assert len(after) == 5
    clones = [record["cloned_from"] for record in after.values() if record["cloned_from"]]
    assert clones == [*before]
    assert {key: after[key] for key in before} == before
    for record in after.values():
        assert [report["pairs_seen"] for report in record["curve"]] == [64, 128, 192, 256]
    objects = store.read()
    passing = ("sim/state/", "sim/requests/", "sim/.driver")
    assert not [path for path in objects if path.startswith(passing)]
    assert {"sim/winner/simulated.json", "sim/report.html", "sim/places.jsonl"} <= objects.keys()
    left = (path.parts for path in (tmp_path / "disk of").rglob("*") if path.is_file())
    assert not [parts for parts in left if {"state", "best"} & set(parts)]

    machine(monkeypatch, tmp_path, "a third")
    results = load_results(store.run("sim"))
    assert results.winner is not None
    best = max(after, key=lambda key: after[key]["metrics"]["eval/accuracy"])
    assert results.winner.trial == best
    clean = rf"DPO_TUNE_RUNS={re.escape(shlex.quote(store.url))} \S*dpo-tune clean"
    with pytest.raises(InputError, match=clean):
        run(yaml, {"runs_dir": store.url, "trials": 9, "seed": 1})
    monkeypatch.setenv("DPO_TUNE_RUNS", store.url)
    (stored,) = list_clean.stored(runs_root())
    assert (stored.name, stored.state, stored.trials) == ("sim", "finished", "5/5")
    with pytest.raises(InputError, match="has already ended"):
        stop("sim", best)
    list_clean.remove(runs_root(), ["sim"])
    assert store.read() == {}
    with pytest.raises(InputError, match=r"under s3://bucket/runs.*there is none"):
        load_results("sim")


@pytest.mark.cluster
def test_a_killed_driver_costs_nothing_that_was_saved_on_the_url(
    store: ObjectStore, tmp_path: Path, yaml: Path, dpo_tune: Run, start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing of the dead machine's disk is needed."""

    def ended() -> dict[str, Any]:
        records = store.records("sim").items()
        return {key: record for key, record in records if record["state"] in ENDED}

    options = settings(**{"runs_dir": store.url, "trials": 4, "stopping.name": "none",
                        "simulated.pairs": 256, "simulated.seconds_per_report": 0.3})  # fmt: skip
    process = start("run", yaml, *options)
    wait_until(lambda: len(ended()) >= 1, process)
    process.kill()
    process.communicate()
    before, saved = ended(), store.read()
    assert len(before) < 4
    went: dict[str, int] = {}
    for path in saved:
        if path.startswith("sim/state/") and path.endswith(CHECKSUMS):
            _, _, trial, pairs, _ = path.split("/")
            reached = store.records("sim")[trial]["curve"][-1]["pairs_seen"]
            went[trial] = max(min(int(pairs), int(reached)), went.get(trial, 0))

    machine(monkeypatch, tmp_path, "another")
    hurry(find_run(store.run("sim")).path)
    done = dpo_tune("resume", store.run("sim"))
    assert done.returncode == 0, done.stdout + done.stderr
    after = store.records("sim")
    assert len(after) == 4
    assert {key: after[key] for key in before} == before
    for key, record in after.items():
        assert [report["pairs_seen"] for report in record["curve"]] == [64, 128, 192, 256]
        # The trials did not repeat what was saved when the first driver died.
        if key not in before:
            first = [r["pairs_seen"] for r in record["curve"] if r["train_seconds"] == 0.3]
            assert first == list(range(64, went.get(key, 0) + 1, 64))


@pytest.mark.cluster
def test_a_store_that_fails_ends_the_driver_session_with_a_line(
    store: ObjectStore, yaml: Path, start: Start
) -> None:
    slow = {"runs_dir": store.url, "simulated.seconds_per_report": 1}
    process = start("run", yaml, *settings(**slow))
    try:
        wait_until(lambda: any(r["curve"] for r in store.records("sim").values()), process)
        store.stop()
        output, _ = process.communicate(timeout=120)
    finally:
        store.stop()
        store.start()
    assert process.returncode == 130, output
    assert f"to go on: {sys.executable} -m tune resume {shlex.quote(store.run('sim'))}" in output
    assert "can't be reached" in output
    assert "Traceback" not in output


def test_a_second_driver_of_a_url_is_refused_but_a_dead_one_is_replaced(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver_lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(driver_lease, "DEAD_SECONDS", 0.6)
    here, other = (mirror.local(url) / "x" for url in (store.url, f"{store.url}&region=us-east-1"))
    with only_driver(RunFolder.at(here)):
        with (
            pytest.raises(InputError, match=rf"process {os.getpid()} on .* runs this search now"),
            only_driver(RunFolder.at(other)),
        ):
            pass
        # A driver of another machine counts as dead when its heartbeat stops. If it goes on after
        # all, it finds the new driver's entry.
        foreign = {"id": "f", "where": ["other", "", ""], "pid": 1, "beat": 0}
        mirror.put(here / ".driver.json", json.dumps(foreign))
        with pytest.raises(StoreError, match="process 1 on other drives"):
            write_until_refused(here / "run.json")
    with only_driver(RunFolder.at(other)):
        assert "checking for up to 1 s whether it still runs" in capsys.readouterr().out
        assert json.loads(store.read()["x/.driver.json"])["pid"] == os.getpid()
    assert "x/.driver.json" not in store.read()


def write_until_refused(file: Path) -> None:
    """Write until the next heartbeat finds the other driver; on a busy machine it comes late."""
    for _ in range(100):
        mirror.put(file, "{}")
        time.sleep(0.1)


def test_an_incomplete_folder_does_not_exist_on_the_store(store: ObjectStore) -> None:
    folder = complete(mirror.local(store.url) / "x" / "best" / "a" / "64", weights="1", config="2")
    mirror.hand_over(folder)
    assert not folder.exists()
    assert mirror.find(folder.parents[1], f"*/[0-9]*/{CHECKSUMS}") == [folder / CHECKSUMS]
    assert (mirror.pull(folder) / "weights").read_text() == "1"
    (folder / "weights").write_text("damaged here")
    assert (mirror.pull(folder) / "weights").read_text() == "1"
    store.remove(f"x/best/a/64/{CHECKSUMS}")
    assert mirror.find(folder.parents[1], f"*/[0-9]*/{CHECKSUMS}") == []
    with pytest.raises(FileNotFoundError):
        mirror.pull(folder)


def test_another_s3_than_amazons_is_named_by_the_environment(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    mirror.put(mirror.local("s3://bucket/runs") / "x" / "a.json", "{}")
    assert store.read() == {"x/a.json": b"{}"}


def test_a_runs_documents_are_those_of_the_url(store: ObjectStore) -> None:
    run = mirror.local(store.url) / "x"
    (run / "trials").mkdir(parents=True)
    create_run(RunFolder.at(run), Path(), "cpu")
    mirror.put(run / "trials" / "a.json", "{}")
    (run / "trials" / "stale.json").write_text("{}")
    driver_lease.refresh(RunFolder.at(run))
    assert [path.name for path in (run / "trials").iterdir()] == ["a.json"]
    store.remove("x/run.json")
    driver_lease.refresh(RunFolder.at(run))
    assert not (run / "run.json").exists()
    assert not (run / "trials").exists()


def test_prepared_data_is_computed_once_for_all_machines(
    store: ObjectStore, small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = mirror.local(store.url) / ".prepared"
    folder = reference.plan(small_config, data.load_pairs(small_config.data), root, "cpu")
    url = mirror.name(folder)
    first = reference.prepare(folder)
    assert first.computed_pairs == 60
    rows = first.split("test")[:]
    machine(monkeypatch, tmp_path, "another")
    prepared = reference.prepare(mirror.local(url))
    assert prepared.folder != folder
    assert prepared.computed_pairs == 0
    assert prepared.split("test")[:] == rows


def test_a_store_that_does_not_know_the_bucket_is_named_in_a_line(
    store: ObjectStore, yaml: Path, dpo_tune: Run
) -> None:
    wrong = store.url.replace("/bucket/", "/no-such-bucket/")
    refused = dpo_tune("run", yaml, "--set", f"runs_dir={wrong}")
    assert refused.returncode == 2
    assert "NO_SUCH_BUCKET" in refused.stderr
    assert "; check the bucket, the region" in refused.stderr
    assert refused.stderr.count("\n") == 1
    with pytest.raises(InputError, match="there is no run at s3://no-such-bucket/runs"):
        load_results(wrong)


def test_a_path_and_a_url_are_told_apart_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path, "here")
    for url in ("s3://b/runs/x", "gs://b/x?scheme=http", "abfs://c@a.dfs.core.windows.net/r/x"):
        assert mirror.url(mirror.local(url)) == url
        assert mirror.local(mirror.name(mirror.local(url))) == mirror.local(url)
    assert mirror.url(Path("runs/x")) is None
    assert mirror.shown(mirror.local("s3://b/x?a=1&b=2")) == "'s3://b/x?a=1&b=2'"


def test_a_command_that_needs_a_path_says_so() -> None:
    config = SearchConfig.model_validate(
        {"name": "x", "trials": 1, "runs_dir": "s3://bucket/runs", "serve": {"after": True}}
    )
    with pytest.raises(InputError, match="serve.after: replicas can read the winner only"):
        deploy.check(config)


def test_several_gpus_of_a_trial_on_a_url_are_of_one_node() -> None:
    resources = SearchConfig.model_validate({"name": "x", "resources": {"gpus": 2}}).resources
    assert bundles(resources, one_node=True).strategy == "STRICT_PACK"
    assert bundles(resources).strategy == "PACK"
