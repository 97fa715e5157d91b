"""Ports of this machine and of a test's own hosts: a free one, and waiting until one answers."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for_port(
    address: str, port: int, process: subprocess.Popen[Any], log: Path, seconds: float = 90
) -> None:
    """Until what `process` brings up answers there; shows its log if it ends before."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{address}:{port} does not answer"
            time.sleep(0.2)
