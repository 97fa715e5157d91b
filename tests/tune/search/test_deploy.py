"""A search serves its winner as its last step, on a real Ray cluster that outlives it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, Run
from tests.helpers.one_node import one_node
from tests.helpers.ports import free_port


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start one node, and set the environment in which the commands find it."""
    port = free_port()
    environment = {
        "PYTHONPATH": str(ROOT),
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{port}",
        "RAY_AUTH_MODE": "disabled",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with one_node(3, f"--dashboard-port={port}") as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        deadline = time.monotonic() + 60
        while not is_there(environment["RAY_DASHBOARD_ADDRESS"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield


def is_there(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/version", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def search(dpo_tune: Run, port: int) -> str:
    """Run the search and return what it prints."""
    settings = ("trials=1", "space={}", "points=[]", "data.limit=60", "wandb.mode=disabled",
                "serve.after=true", f"serve.port={port}")  # fmt: skip
    changes = [word for setting in settings for word in ("--set", setting)]
    done = dpo_tune("run", ROOT / "searches" / "quickstart.yaml", *changes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_the_winner_answers_when_its_search_has_ended(dpo_tune: Run, tmp_path: Path) -> None:
    port = free_port()
    assert f"served at: http://127.0.0.1:{port}" in search(dpo_tune, port)
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
    assert f"served at: http://127.0.0.1:{port}" in search(dpo_tune, port)
    # Ray restarts replicas only where something differs.
    assert application(run)["runtime_env"] != before["runtime_env"]


def application(run: Path) -> dict[str, Any]:
    (only,) = YAML(typ="safe", pure=True).load(run / "serve.yaml")["applications"]
    return dict(only)


def test_no_cluster_to_serve_on_is_said_before_the_search(
    dpo_tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", ROOT / "searches" / "quickstart.yaml", "--set", "serve.after=true")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = dpo_tune(*command)
    assert done.returncode == 2
    assert "`ray start --head` and set RAY_ADDRESS" in done.stderr
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{free_port()}")
    done = dpo_tune(*command)
    assert done.returncode == 2
    assert "no Ray dashboard answers at http://127.0.0.1" in done.stderr
    assert not (tmp_path / "runs" / "quickstart" / "trials").exists()
