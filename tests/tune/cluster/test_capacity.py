"""The resources that a search requests from a cluster, tested without one."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_train.errors import InputError
from tests.conftest import ROOT
from tests.helpers.driver import Driver, result_of
from tune.cluster import capacity
from tune.config.checks import refuse_uneven_batches
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.run_folder.folder import find_run, find_run_here, refuse_private_folder
from tune.run_folder.paths import RunFolder
from tune.run_folder.step import Step
from tune.workers import gpu_share


def job(monkeypatch: pytest.MonkeyPatch, **runtime_env: Any) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))


def test_runs_stand_where_the_cluster_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = ROOT / "searches" / "quickstart.yaml"
    assert load_search(yaml).folder == Path("runs/quickstart")
    monkeypatch.setenv("DPO_TUNE_RUNS", str(tmp_path))
    assert load_search(yaml).folder == tmp_path / "quickstart"
    assert load_search(yaml, {"runs_dir": "here"}).folder == Path("here/quickstart")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").touch()
    assert find_run("done") == RunFolder.at(tmp_path / "done")
    with pytest.raises(InputError, match=f"under {tmp_path}/ there are: done"):
        find_run("none")


def test_a_job_does_not_write_into_the_copy_that_ray_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_private_folder(RunFolder.at(Path("runs/x")))
    job(monkeypatch)  # KubeRay's entry point may run in the image's own folder
    refuse_private_folder(RunFolder.at(Path("runs/x")))
    job(monkeypatch, working_dir="gcs://_ray_pkg_0.zip")
    refuse_private_folder(RunFolder.at(Path("/mnt/shared/x")))
    with pytest.raises(InputError, match="set DPO_TUNE_RUNS on the cluster's nodes, or type"):
        refuse_private_folder(RunFolder.at(Path("runs/x")))


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"does not see {tmp_path}; give a path that all nodes"):
        find_run_here(str(tmp_path))


def test_on_a_cluster_that_can_grow_all_of_at_once_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = SearchConfig.model_validate({"name": "x", "resources": {"at_once": 64}})
    assert capacity.trial_capacity(config) == 64


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 2), (0.001, 3), (0.7, 8), (4, 0.5), (0.5, 0)])
def test_a_trial_takes_no_more_than_its_members_do(cpus: float, gpus: float) -> None:
    content = {"name": "x", "resources": {"cpus": cpus, "gpus": gpus}}
    config = SearchConfig.model_validate(content)
    wanted = {"CPU": round(cpus * config.resources.members, 4), "GPU": gpus}
    assert capacity._wanted(config) == {name: amount for name, amount in wanted.items() if amount}


def test_a_trial_that_takes_more_than_its_fraction_ends_the_search(tmp_path: Path) -> None:
    def message(gpus: float, took: float) -> str:
        config = SearchConfig.model_validate({"name": "x", "resources": {"gpus": gpus}})
        report = {"peak_memory_gb": took, "device_memory_gb": 24.0}
        return gpu_share.overfull(config, report)

    assert message(0.25, 5.9) == message(1, 23.0) == ""
    assert "a trial took 7.5 GB, but 0.25 of this GPU is 6.0 of 24.0 GB" in message(0.25, 7.5)
    assert "3 would fit: type `--set resources.gpus=0.333" in message(0.25, 7.5)
    assert "1 would fit: type `--set resources.gpus=1 " in message(0.5, 23.0)

    driver = Driver(tmp_path, trainer="trl", resources={"gpus": 0.25})
    trial = driver.start()
    report = {"pairs_seen": 64, "eval/accuracy": 0.6, "eval/nll": 0.6, "eval/drift": 1.0}
    full = {"peak_memory_gb": 7.5, "device_memory_gb": 24.0}
    result = result_of(Step({**report, **full}, began=1.0, seconds=1.0))
    assert driver.scheduler.on_trial_result(None, trial, result) == "STOP"
    assert driver.scheduler.input_error == message(0.25, 7.5)
    driver.complete(trial, result)  # it can go on after the user has changed the fraction
    assert [record.state for record in driver.records.open_trials()] == ["running"]


def test_a_batch_of_any_size_is_not_shared_out_among_gpus() -> None:
    content = {"name": "x", "trials": 2, "resources": {"gpus": 2}}
    space = {"optim.batch_size": {"int": [4, 8]}}
    with pytest.raises(InputError, match=r"5 pairs can't be split.*`\{choice: \[2, 4\]\}`"):
        refuse_uneven_batches(SearchConfig.model_validate({**content, "space": space}))


def test_keys_of_aws_stay_out_of_the_runtime_environment() -> None:
    from ray.tune.execution import class_cache

    capacity.keep_secrets_out_of_ray()
    names = class_cache.ENV_VARS_TO_PROPAGATE
    assert "RAY_CHDIR_TO_TRIAL_DIR" in names
    assert not [name for name in names if name.startswith("AWS")]
