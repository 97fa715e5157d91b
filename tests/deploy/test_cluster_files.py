"""Ray's own readers understand cluster.yaml and deploy/."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from serve.app import ReplicaOptions
from tests.conftest import ROOT
from tests.helpers import cluster_yaml
from tests.helpers.ray_job_command import sent_by
from tune.__main__ import _parser
from tune.config.load import load_search

# Some of the fields of KubeRay 1.6's custom resources. Its own reader ignores unknown fields.
KNOWN = {
    "RayJob": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
               "rayClusterSpec", "submissionMode", "runtimeEnvYAML", "activeDeadlineSeconds"},
    "RayService": {"serveConfigV2", "rayClusterConfig", "upgradeStrategy"},
    "cluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions",
                "headGroupSpec", "workerGroupSpecs", "gcsFaultToleranceOptions"},
    "head": {"rayStartParams", "template", "serviceType", "resources", "labels"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
               "numOfHosts", "idleTimeoutSeconds", "resources", "labels"},
}  # fmt: skip


def validated(config: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_on_aws() -> None:
    prepared = validated(cluster_yaml.on_aws())
    worker = prepared["available_node_types"]["worker"]
    assert worker["resources"] == {"CPU": 4, "GPU": 1}
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    head = prepared["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


@pytest.mark.parametrize(
    ("name", "provider"), [("Google Cloud", "gcp"), ("Your own machines by SSH", "local")]
)
def test_ray_accepts_the_cluster_of_each_commented_block(name: str, provider: str) -> None:
    assert set(cluster_yaml.BLOCKS) == {"Google Cloud", "Your own machines by SSH"}
    prepared = validated(cluster_yaml.on(name))
    assert prepared["provider"]["type"] == provider
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(Exception, match="'max_worker' was unexpected"):
        validated({**cluster_yaml.on_aws(), "max_worker": 3})


def test_every_node_asks_for_the_token_and_knows_the_shared_folder() -> None:
    config = cluster_yaml.on_aws()
    for when in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in config[when] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
        assert "DPO_TUNE_RUNS=/mnt/shared/runs" in start
        assert ("--dashboard-host=127.0.0.1" in start) == ("--head" in start)
    assert "~/.ray/auth_token" in config["file_mounts"]
    local = [Path(path) for path in config["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_the_commands_in_the_head_comment_exist() -> None:
    lines = [
        line.removeprefix("#").split(" #")[0].strip() for line in cluster_yaml.TEXT.splitlines()
    ]
    typed = [shlex.split(line)[1:] for line in lines if line.startswith("ray ")]
    assert {"up", "dashboard", "job", "attach", "down", "get-auth-token"} == {
        words[0] for words in typed
    }
    (search,) = [sent_by(*words[1:]) for words in typed if words[0] == "job"]
    assert search == Path("searches/truthy_qwen2.yaml")


def kubernetes(name: str) -> dict[str, Any]:
    resource: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())
    assert resource["apiVersion"] == "ray.io/v1"
    return resource


def read_by_kuberay(name: str, resource: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
    assert resource["spec"].keys() <= KNOWN[resource["kind"]]
    assert cluster.keys() <= KNOWN["cluster"]
    assert cluster["headGroupSpec"].keys() <= KNOWN["head"]
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= KNOWN["worker"]
    raycluster = {"metadata": {"name": name, "namespace": "default"}, "spec": cluster}
    config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(raycluster)
    return config


def test_kuberay_accepts_the_search_on_kubernetes() -> None:
    job = kubernetes("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    config = read_by_kuberay("search", job, cluster)
    assert config["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    worker = config["available_node_types"]["gpu"]
    assert worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"]) == (0, 16)
    assert cluster["authOptions"] == {"mode": "token"}
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "tune"]
    assert load_search(ROOT / _parser().parse_args(words[3:]).yaml).resources.gpus == 1
    environment = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "DPO_TUNE_RUNS", "value": "/mnt/shared/runs"} in environment


def test_kuberay_and_ray_serve_accept_the_server_on_kubernetes() -> None:
    service = kubernetes("rayservice.yaml")
    config = read_by_kuberay("server", service, service["spec"]["rayClusterConfig"])
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    given = yaml.safe_load(service["spec"]["serveConfigV2"])
    # The schema drops unknown keys silently, so the result must equal the input.
    assert ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True) == given
    (application,) = given["applications"]
    assert application["import_path"] == "serve.app:build"
    assert ReplicaOptions(**application["args"]).gpus == 1
