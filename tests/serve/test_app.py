"""`serve run` as users type it, with real replicas, and the config file."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from ruamel.yaml import YAML

from serve import app
from serve.errors import ModelError
from tests.conftest import ROOT
from tests.helpers.ports import free_port

CONFIG = ROOT / "deploy" / "serve.yaml"
QUESTION = "Is it true that goldfish forget everything in seconds?"
Start = Callable[..., str]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Return a folder for Ray's temporary files; its path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def ray_serve(tmp_path: Path, ray_folder: Path) -> Iterator[Start]:
    """Yield a function that starts `serve run` on a Ray of its own and returns the address."""
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
                     "RAY_TMPDIR": str(ray_folder), "RAY_metrics_report_interval_ms": "500"},
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
def test_two_replicas_share_the_work_and_prometheus_can_add_up_their_counts(
    ray_serve: Start, ray_folder: Path
) -> None:
    with httpx.Client(base_url=ray_serve(min_replicas=2, max_replicas=2), timeout=60) as client:
        assert client.post("/generate", json={}).status_code == 400
        assert client.get("/nowhere").status_code == 404
        assert client.get("/metrics").status_code == 404  # it would be that of a random replica
        assert client.head("/v1/models/").status_code == 200
        assert "Generate" in client.get("/").text
        deadline = time.monotonic() + 90
        found: dict[tuple[str, ...], dict[str, float]] = {}
        expected: dict[tuple[str, ...], int] = {}
        rounds = 0
        # The proxy may learn of the second replica later than of the first.
        while len(found.get(("tokens_total", "sample", "answer"), {})) < 2:
            assert time.monotonic() < deadline, found
            for number in range(20):
                body = {"prompt": QUESTION, "temperature": 0, "max_tokens": 5 + number % 2}
                assert client.post("/generate", json=body).status_code == 200
            rounds += 1
            expected = {
                ("requests_total", "/generate", "200"): 20 * rounds,
                ("requests_total", "/generate", "400"): 1,
                ("tokens_total", "sample", "answer"): 110 * rounds,
                ("first_token_seconds_count", "sample"): 20 * rounds,
                ("batch_size_bucket", "1.0", "sample"): 110 * rounds,
                ("waiting_bucket", "0.5", "sample"): 110 * rounds,
            }
            while not is_counted(found, expected):
                assert time.monotonic() < deadline, (found, expected)
                time.sleep(0.5)
                found = counted(ray_folder / "ray" / "prom_metrics_service_discovery.json")


def test_without_a_key_nothing_is_served_where_others_could_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Controller:
        host: str | None = "127.0.0.1"

        class get_http_config:
            @staticmethod
            def remote() -> "type[Controller]":
                return Controller

    monkeypatch.setattr(app.ray, "get_actor", lambda *_, **__: Controller)
    monkeypatch.setattr(app.ray, "get", lambda answer: answer)
    for name in ("SERVE_API_KEY", "SERVE_API_KEY_FILE", "RAY_SERVE_ENABLE_HA_PROXY"):
        monkeypatch.delenv(name, raising=False)
    app._refuse_open_proxies()
    Controller.host = "0.0.0.0"
    with pytest.raises(ModelError, match=r"^http_options.host: 0.0.0.0 is open to others"):
        app._refuse_open_proxies()
    Controller.host = "127.0.0.1"
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ModelError, match="RAY_SERVE_ENABLE_HA_PROXY is 1, and there is no key"):
        app._refuse_open_proxies()
    monkeypatch.setenv("SERVE_API_KEY", "a key")
    app._refuse_open_proxies()


def is_counted(
    found: dict[tuple[str, ...], dict[str, float]], expected: dict[tuple[str, ...], int]
) -> bool:
    return all(sum(found.get(key, {}).values()) == value for key, value in expected.items())


def counted(discovery: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """Return what Prometheus would scrape from each process, by name and our labels.

    Ray writes the addresses of the processes into a file.
    """
    found: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for address in {one for group in json.loads(discovery.read_text()) for one in group["targets"]}:
        text = httpx.get(f"http://{address}/metrics", timeout=20).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("ray_dpo_tune_serve_")
                labels = [
                    sample.labels.get(one) for one in ("path", "le", "model", "kind", "status")
                ]
                key = (name, *filter(None, labels))
                found[key][sample.labels.get("WorkerId", "")] = sample.value
    return found


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_replicas: 2 is more than max_replicas, 1"):
        app.build({"model": "sample", "min_replicas": 2})


def test_the_config_file_is_as_ray_serve_reads_it() -> None:
    content = YAML(typ="safe", pure=True).load(CONFIG.read_text())
    read = ServeDeploySchema(**content).model_dump(exclude_unset=True)
    assert read == content | {"proxy_location": read["proxy_location"]}  # Ray drops unknown keys
    (application,) = content["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name)(application["args"])
