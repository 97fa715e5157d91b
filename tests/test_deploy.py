"""A search whose last step is to serve its winner: a real Ray cluster that outlives it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, Run
from tests.ports import free_port


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


def search(dpo_tune: Run, port: int) -> str:
    """What it prints."""
    settings = ("trials=1", "space={}", "points=[]", "data.limit=60", "wandb.mode=disabled",
                "serve.after=true", f"serve.port={port}")  # fmt: skip
    changes = [word for setting in settings for word in ("--set", setting)]
    done = dpo_tune("run", ROOT / "searches" / "quickstart.yaml", *changes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_winner_answers_when_its_search_has_ended(dpo_tune: Run, tmp_path: Path) -> None:
    port = free_port()
    assert f"it answers: http://127.0.0.1:{port}" in search(dpo_tune, port)
    url = f"http://127.0.0.1:{port}/generate"
    answer = httpx.post(url, json={"prompt": "Do bats see?", "max_tokens": 5}, timeout=60).json()
    assert answer["model"] == "quickstart"
    served = application(tmp_path / "runs" / "quickstart")
    assert served["args"]["model"].endswith("runs/quickstart/winner")


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_another_winner_in_the_same_folder_is_served_anew(dpo_tune: Run, tmp_path: Path) -> None:
    port, run = free_port(), tmp_path / "runs" / "quickstart"
    search(dpo_tune, port)
    before = application(run)
    stamp = run / "winner" / "trial.json"
    stamp.write_text(stamp.read_text() + "\n")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "served": None}))
    assert f"it answers: http://127.0.0.1:{port}" in search(dpo_tune, port)
    # Ray restarts replicas only where something differs.
    assert application(run)["runtime_env"] != before["runtime_env"]


def application(run: Path) -> dict[str, Any]:
    (only,) = YAML(typ="safe", pure=True).load(run / "serve.yaml")["applications"]
    return dict(only)


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
