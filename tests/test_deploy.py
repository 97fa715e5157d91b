"""A search whose last step is to serve its winner: a real Ray cluster that outlives it."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, Run
from tests.test_serve import free_port


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One node, and the environment in which the commands find it."""
    port, dashboard = free_port(), free_port()
    environment = {
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "disabled",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory(prefix="dt-", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [Path(sys.executable).parent / "ray", "start", "--head", "--block",
             "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}",
             "--num-cpus=3", f"--temp-dir={folder}", "--disable-usage-stats"],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not is_there(environment["RAY_DASHBOARD_ADDRESS"]):
                assert head.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


def is_there(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/version", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_winner_answers_when_its_search_has_ended(dpo_tune: Run, tmp_path: Path) -> None:
    port = free_port()
    settings = ("trials=1", "space={}", "points=[]", "data.limit=60", "wandb.mode=disabled",
                "serve.after=true", f"serve.port={port}")  # fmt: skip
    changes = [word for setting in settings for word in ("--set", setting)]
    done = dpo_tune("run", ROOT / "searches" / "quickstart.yaml", *changes)
    assert done.returncode == 0, done.stderr
    assert f"it answers: http://127.0.0.1:{port}" in done.stdout
    url = f"http://127.0.0.1:{port}/generate"
    answer = httpx.post(url, json={"prompt": "Do bats see?", "max_tokens": 5}, timeout=60).json()
    assert answer["model"] == "quickstart"
    (tmp_path / "runs" / "quickstart" / "serve.yaml").rename(tmp_path / "before.yaml")
    grown = dpo_tune("resume", "runs/quickstart", "--trials", "+1")
    assert grown.returncode == 0, grown.stderr
    assert f"it answers: http://127.0.0.1:{port}" in grown.stdout
    written = YAML(typ="safe", pure=True).load(tmp_path / "runs" / "quickstart" / "serve.yaml")
    assert written["applications"][0]["args"]["model"].endswith("runs/quickstart/winner")


def test_no_cluster_to_serve_on_is_said_before_the_search(
    dpo_tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("run", ROOT / "searches" / "quickstart.yaml", "--set", "serve.after=true")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = dpo_tune(*asked)
    assert done.returncode == 2
    assert "`ray start --head` and set RAY_ADDRESS" in done.stderr
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{free_port()}")
    done = dpo_tune(*asked)
    assert done.returncode == 2
    assert "no Ray dashboard answers at http://127.0.0.1" in done.stderr
    assert not (tmp_path / "runs" / "quickstart" / "trials").exists()
