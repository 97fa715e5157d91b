"""`python -m serve` and `serve run` as their users type them: the page, real replicas, the end."""

import contextlib
import importlib
import os
import re
import signal
import socket
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

from dpo_train import sample
from serve import app
from tests.conftest import ROOT
from tests.ports import free_port

CONFIG = ROOT / "deploy" / "serve.yaml"
QUESTION = "Is it true that goldfish forget everything in seconds?"
Serve = Callable[..., tuple[subprocess.Popen[str], str]]
Start = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts the server and waits until it says where it is."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *map(str, arguments)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        said = ""
        assert process.stdout is not None
        while not (found := re.search(r"ready: (\S+)", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        return process, found[1]

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


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


def test_a_folder_is_served_with_its_page(serve: Serve) -> None:
    process, url = serve(
        f"winner={sample.MODEL}", f"base={sample.MODEL}", "--port", free_port(), "--author", "By Jo"
    )
    asked = {"prompt": QUESTION, "temperature": 0, "max_tokens": 20}
    answer = httpx.post(f"{url}/generate", json=asked, timeout=60).json()
    assert answer["text"]
    page = httpx.get(f"{url}/").text
    assert "Compare with the base" in page
    assert "By Jo" in page
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - began < 20
    assert "Traceback" not in output


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


def refused(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "serve", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_would_be_unsafe_or_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "0.0.0.0 is open to others, and there is no key; set SERVE_API_KEY" in refused(
        "sample", "--host", "0.0.0.0"
    )
    (tmp_path / "key").write_text("\n")
    assert "No such file" in refused("sample", SERVE_API_KEY_FILE=str(tmp_path / "none"))
    assert "holds no key" in refused("sample", SERVE_API_KEY_FILE=str(tmp_path / "key"))
    assert "holds no key" in refused("sample", SERVE_API_KEY="")
    assert "--slots: " in refused("sample", "--slots", 0)
    assert "./none: no such folder" in refused("./none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"can't listen on 127.0.0.1:{port}: Address already in use; give another" in refused(
            "sample", "--port", port
        )
    with pytest.raises(ValidationError, match="min_replicas: 2 is more than max_replicas, 1"):
        app.build({"model": "sample", "min_replicas": 2})


def test_the_config_file_is_as_ray_serve_reads_it() -> None:
    content = YAML(typ="safe", pure=True).load(CONFIG.read_text())
    read = ServeDeploySchema(**content).model_dump(exclude_unset=True)
    assert read == content | {"proxy_location": read["proxy_location"]}  # an unknown key is dropped
    (application,) = content["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name)(application["args"])
