"""A Ray cluster on this machine alone, which outlives the searches that run on it."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.helpers.ports import free_port, wait_for_port


@contextlib.contextmanager
def one_node(cpus: int, *options: str, **environment: str) -> Iterator[str]:
    """Start the cluster and yield its address. At the end, kill only the processes it started."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # The path is short, because the length of socket paths has a limit.
    with tempfile.TemporaryDirectory(prefix="dt-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "head.log"
        with log.open("w") as output:
            head = subprocess.Popen(
                [Path(sys.executable).parent / "ray", "start", "--head", "--block",
                 "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={cpus}",
                 f"--temp-dir={folder}", "--disable-usage-stats", *options],
                env={**inherited, **environment}, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            wait_for_port("127.0.0.1", port, head, log)
            yield f"127.0.0.1:{port}"
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()
