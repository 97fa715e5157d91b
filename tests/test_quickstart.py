"""The README's main command where only loopback exists, and its winner in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tune import load_results

pytestmark = pytest.mark.slow

# Bring up the namespace's own loopback (SIOCSIFFLAGS) and show that there is no other interface.
ISOLATED = """
import fcntl, os, socket, struct, sys
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError:
    pass
else:
    sys.exit("there is a network")
assert [name for _, name in socket.if_nameindex() if name == "lo"]
os.execv(sys.executable, [sys.executable, "-m", "tune", *sys.argv[1:]])
"""


def test_the_quickstart_runs_where_only_loopback_exists(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", ISOLATED,
         "run", str(ROOT / "searches" / "quickstart.yaml"), "--set", "trials=2",
         "--set", "data.limit=300", "--set", "resources.at_once=1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "runs" / "quickstart")
    winner = results.winner
    assert winner is not None
    assert 0.40 <= results.base["test"].metrics["ranking"] <= 0.60
    assert winner.test.metrics["accuracy"] > 0.7
    assert winner.test.pairs == results.base["test"].pairs >= 50
    low, high = winner.test.interval
    assert low <= winner.test.metrics["ranking"] <= high
    assert results.cost.reference_pairs == 300
    assert len(results.answers) == 5
    assert results.answers[0].winner in done.stdout

    again = subprocess.run(
        [sys.executable, "-m", "tune", "replay", "quickstart", results.trials[0].id],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""  # no progress bars and no warnings of libraries
    assert "all numbers are the same to the last bit" in again.stdout

    answer = subprocess.run(
        [sys.executable, "-c", ANSWER, str(tmp_path / "runs" / "quickstart" / "winner")],
        input=json.dumps(results.answers[0].prompt), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.strip()) > 10


# Somebody else uses the winner with transformers alone, without this project.
ANSWER = """
import json, sys
from transformers import pipeline
speak = pipeline("text-generation", sys.argv[1], device="cpu")
said = speak([{"role": "user", "content": json.load(sys.stdin)}], max_new_tokens=40)
print(said[0]["generated_text"][-1]["content"])
"""
