"""`python -m serve` as users type it: the page, how it ends, and what it refuses."""

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
from transformers import BloomConfig

from dpo_train import sample
from tests.conftest import ROOT
from tests.helpers import small_models
from tests.helpers.ports import free_port

QUESTION = "Is it true that goldfish forget everything in seconds?"
Serve = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start the server and wait until it prints its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *map(str, arguments)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        output = ""
        assert process.stdout is not None
        while not (found := re.search(r"ready: (\S+)", output)):
            line = process.stdout.readline()
            assert line, output
            output += line
        assert "%|" not in output  # no progress bar of a library
        return process, found[1]

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def test_a_folder_is_served_with_its_page(serve: Serve) -> None:
    process, url = serve(
        f"winner={sample.MODEL}", f"base={sample.MODEL}", "--port", free_port(), "--author", "By Jo"
    )
    body = {"prompt": QUESTION, "temperature": 0, "max_tokens": 20}
    answer = httpx.post(f"{url}/generate", json=body, timeout=60).json()
    assert answer["text"]
    assert httpx.head(f"{url}/v1/models/").status_code == 200
    page = httpx.get(f"{url}/").text
    assert "Generate" in page
    assert "By Jo" in page
    assert '"models": ["winner", "base"]' in page
    assert "streamAnswer" in httpx.get(f"{url}/page/page.js").text
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - began < 20
    assert output == ""


def test_other_spellings_of_loopback_are_listened_on(serve: Serve) -> None:
    port = free_port()
    process, url = serve("sample", "--host", "127.2", "--port", port)
    assert url == f"http://127.0.0.2:{port}"
    assert httpx.get(f"{url}/v1/models").status_code == 200
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output


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
    assert "--host: no.such.name is no address of this machine; try 127.0.0.1" in refused(
        "sample", "--host", "no.such.name"
    )
    (tmp_path / "key").write_text("\n")
    assert "No such file" in refused("sample", SERVE_API_KEY_FILE=str(tmp_path / "none"))
    assert "holds no key" in refused("sample", SERVE_API_KEY_FILE=str(tmp_path / "key"))
    assert "holds no key" in refused("sample", SERVE_API_KEY="")
    assert "--slots: " in refused("sample", "--slots", 0)
    assert "--allowed-origins: a.example is no origin; give one like https" in refused(
        "sample", "--allowed-origins", "a.example"
    )
    assert "https://a.example:443 is no origin" in refused(
        "sample", "--allowed-origins", "https://a.example:443"
    )
    assert "./none: no such folder" in refused("./none", "--port", free_port())
    bloom = small_models.save(BloomConfig(hidden_size=32, n_layer=2, n_head=2), tmp_path / "bloom")
    assert "bloom: BloomForCausalLM can't be served here: it accepts no other attention" in refused(
        bloom, "--port", free_port(), HF_HUB_DISABLE_PROGRESS_BARS="1"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"can't listen on 127.0.0.1:{port}: Address already in use; give another" in refused(
            "sample", "--port", port
        )
