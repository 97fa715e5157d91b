"""Finds a free port of this machine, and waits until a port of a test's host answers."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for_port(
    address: str, port: int, process: subprocess.Popen[Any], log: Path, seconds: float = 90
) -> None:
    """Wait until `process` answers at a port. If it ends before, fail with its log."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{address}:{port} does not answer"
            time.sleep(0.2)
