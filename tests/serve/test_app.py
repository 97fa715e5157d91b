"""`serve run` as its users type it, with real replicas, and the config file."""

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from ruamel.yaml import YAML

from serve import app
from tests.conftest import ROOT
from tests.helpers.ports import free_port

CONFIG = ROOT / "deploy" / "serve.yaml"
QUESTION = "Is it true that goldfish forget everything in seconds?"
Start = Callable[..., str]


@pytest.fixture
def ray_serve(tmp_path: Path) -> Iterator[Start]:
    """`serve run` of a config file, on a Ray cluster of its own; gives the address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**given: object) -> str:
        config = YAML(typ="safe", pure=True).load(CONFIG.read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
        config["applications"][0]["args"] = {"model": "sample", "cpus": 0.5, **given}
        YAML().dump(config, tmp_path / "serve.yaml")
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "serve", "run", "serve.yaml"],
                cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local",
                     "RAY_metrics_report_interval_ms": "500"},
            )  # fmt: skip
        started.append(process)
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        deadline = time.monotonic() + 90
        while not is_ready(url):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


@pytest.mark.slow
def test_two_replicas_share_the_work_and_their_counts_add_up(ray_serve: Start) -> None:
    with httpx.Client(base_url=ray_serve(min_replicas=2, max_replicas=2), timeout=60) as client:
        for number in range(20):
            asked = {"prompt": QUESTION, "temperature": 0, "max_tokens": 5 + number % 2}
            assert client.post("/generate", json=asked).status_code == 200
        assert client.post("/generate", json={}).status_code == 400
        assert client.get("/nowhere").status_code == 404
        assert "Generate" in client.get("/").text
        expected = {
            'requests_total{path="/generate",status="200"}': 20,
            'requests_total{path="/generate",status="400"}': 1,
            'tokens_total{kind="answer",model="sample"}': 110,
            'first_token_seconds_count{model="sample"}': 20,
            'batch_size_bucket{le="1.0",model="sample"}': 110,
            'waiting_bucket{le="0.5",model="sample"}': 110,
        }
        deadline = time.monotonic() + 60
        told: dict[str, float] = {}
        while not expected.items() <= told.items() and time.monotonic() < deadline:
            time.sleep(0.2)
            told = counted(client.get("/metrics").text)
    assert expected.items() <= told.items(), told


def counted(text: str) -> dict[str, float]:
    """What `/metrics` tells, by name and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("dpo_tune_serve_"): float(value) for name, _, value in lines}


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_replicas: 2 is more than max_replicas, 1"):
        app.build({"model": "sample", "min_replicas": 2})


def test_the_config_file_is_as_ray_serve_reads_it() -> None:
    content = YAML(typ="safe", pure=True).load(CONFIG.read_text())
    read = ServeDeploySchema(**content).model_dump(exclude_unset=True)
    assert read == content | {"proxy_location": read["proxy_location"]}  # an unknown key is dropped
    (application,) = content["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name)(application["args"])
