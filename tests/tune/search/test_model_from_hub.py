"""A search on a model and a dataset from the Hub: a server on loopback, nothing patched."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_train import sample
from tests.conftest import ROOT
from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> HubServer:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    rows = sample.PAIRS.read_text().splitlines()[:80]
    (dataset / "train.jsonl").write_text("\n".join(rows))
    return HubServer({"models/acme/tiny": sample.MODEL, "datasets/acme/truthy": dataset})


def search(folder: Path, hub_url: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune", "run", "x.yaml", "--set", "wandb.mode=disabled"],
        cwd=folder,
        env={**_environment(folder, hub_url), **changes},
        capture_output=True,
        text=True,
        check=False,
    )


def _environment(folder: Path, hub_url: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }


def yaml(model: str = "acme/tiny", data: str = "acme/truthy") -> str:
    return f"""
model: {{id: {model}}}
data: {{id: {data}, chars: [30, 300]}}
optim: {{learning_rate: 1e-4}}
lora: {{r: 4}}
space: {{dpo.beta: {{uniform: [0.1, 0.2]}}}}
trials: 1
resources: {{at_once: 1}}
"""


def test_a_search_fetches_once_and_then_asks_the_hub_nothing(
    tmp_path: Path, hub: HubServer
) -> None:
    (tmp_path / "x.yaml").write_text(yaml())
    with hub:
        first = search(tmp_path, hub.url)
        assert first.returncode == 0, first.stderr
        weights = [r for r in hub.requests if r.method == "GET" and "model.safetensors" in r.path]
        assert len(weights) == 1
        sha = hub.sha("models/acme/tiny")
        assert f"revision: {sha}" in (tmp_path / "runs/x/search.yaml").read_text()
        adapter = json.loads((tmp_path / "runs/x/winner/adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == "acme/tiny"
        assert adapter["revision"] == sha
        assert str(tmp_path) not in (tmp_path / "runs/x/winner/manifest.json").read_text()
    # The server is gone. A second search needs nothing from it and computes no reference.
    shutil.rmtree(tmp_path / "runs" / "x")
    second = search(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert (
        json.loads((tmp_path / "runs/x/results.json").read_text())["cost"]["reference_pairs"] == 0
    )


def test_what_the_hub_does_not_have_is_said_in_one_line(tmp_path: Path, hub: HubServer) -> None:
    with hub:
        for text, message in (
            (yaml(model="acme/none"), "model.id: 'acme/none' can't be read from the Hub"),
            (yaml(data="acme/none"), "data.id: 'acme/none' (split 'train') can't be loaded"),
        ):
            (tmp_path / "x.yaml").write_text(text)
            done = search(tmp_path, hub.url)
            assert done.returncode == 2
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
            assert not (tmp_path / "runs" / "x").exists()


def test_a_login_that_the_hub_does_not_take_is_said_in_one_line(
    tmp_path: Path, hub: HubServer
) -> None:
    (tmp_path / "x.yaml").write_text(yaml())
    with hub:
        done = search(tmp_path, hub.url, HF_TOKEN="hf_wrong")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    message = (
        "model.id: 'acme/tiny' can't be read from the Hub: the Hub does not accept the login "
        r"(401); type `\S*hf auth login`\n$"
    )
    assert re.search(message.replace("(401)", r"\(401\)"), done.stderr)


def test_processes_that_load_a_model_at_once_fetch_it_once(tmp_path: Path, hub: HubServer) -> None:
    with hub:
        resolved = f"id='acme/tiny', revision='{hub.sha('models/acme/tiny')}'"
        load = f"""
from dpo_train import config, model
model.load_base(config.ModelConfig({resolved}), "cpu")
"""
        command = [sys.executable, "-c", load]
        environment = _environment(tmp_path, hub.url)
        together = [subprocess.Popen(command, env=environment) for _ in range(3)]
        assert [process.wait(timeout=120) for process in together] == [0, 0, 0]
        weights = [r for r in hub.requests if r.method == "GET" and "model.safetensors" in r.path]
        assert len(weights) == 1
        before = len(hub.requests)
        subprocess.run(command, env=environment, check=True)
        assert len(hub.requests) == before
