"""An S3 server on loopback: moto's server as a process, with one bucket."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.ports import wait_for_port

LOGIN = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """Runs for the duration of a `with` block. `url` names a folder in its bucket."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        self._address = (host, port)
        self.endpoint = f"http://{host}:{port}"
        self._log = folder / "moto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"s3://bucket/runs?endpoint_override={host}:{port}&scheme=http"

    def __enter__(self) -> "ObjectStore":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and create its bucket."""
        import boto3

        host, port = self._address
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
                stdout=log, stderr=log, env={**os.environ, **LOGIN},
            )  # fmt: skip
        wait_for_port(host, port, self._process, self._log)
        self._client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=LOGIN["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=LOGIN["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        self._client.create_bucket(Bucket="bucket")

    def stop(self) -> None:
        """Kill the server."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def run(self, name: str) -> str:
        """Return the URL of a run."""
        return self.url.replace("/runs?", f"/runs/{name}?")

    def read(self, below: str = "") -> dict[str, bytes]:
        """Return every object of the bucket's `runs`, by its path, as another client sees it."""
        found = {}
        for path in self._paths(below):
            with contextlib.suppress(self._client.exceptions.NoSuchKey):  # it was removed meanwhile
                got = self._client.get_object(Bucket="bucket", Key=f"runs/{path}")
                found[path] = got["Body"].read()
        return found

    def records(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the trial records of a run, by id."""
        found = self.read(f"{name}/trials/")
        records = [json.loads(text) for path, text in found.items() if path.endswith(".json")]
        return {record["id"]: record for record in records}

    def remove(self, path: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket="bucket", Key=f"runs/{path}")

    def empty(self) -> None:
        """Remove all objects."""
        for path in self._paths():
            self.remove(path)

    def _paths(self, below: str = "") -> list[str]:
        query = {"Bucket": "bucket", "Prefix": f"runs/{below}"}
        pages = self._client.get_paginator("list_objects_v2").paginate(**query)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return [key.removeprefix("runs/") for key in keys if not key.endswith("/")]
