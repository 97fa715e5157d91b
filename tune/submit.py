"""A search as a job of a Ray cluster elsewhere: sent, followed, left to go on.

What travels is this project's sources, the resolved YAML and the data files that it names here; no
secret does: logins are the cluster's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train.errors import InputError, one_line
from tune.config.schema import SearchConfig
from tune.run_folder import yaml_file

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PACKAGES = ("dpo_train", "tune")
_STOP_SECONDS = 60
"""After `ray job stop`, until the driver is killed: it writes its results, W&B is told."""
_RETRY_SECONDS = 5.0
_MARK = "dpo-tune"
"""Metadata of a job: the search that it runs."""
_DIGEST = "dpo-tune-digest"
"""Metadata of a job: of that search's configuration, as it was sent."""


def submit(config: SearchConfig, address: str) -> int:
    """Runs a search on the cluster at that address and returns its exit code.

    Prints what the driver prints. A job that runs this search already is followed instead. Raises
    InputError.
    """
    client = _connect(address)
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
    job = _running(client, config.name, digest, address)
    if job is None:
        job = f"{config.name}-{secrets.token_hex(3)}"
        with _luggage(config) as folder:
            client.submit_job(
                entrypoint="python -m tune run search.yaml",
                submission_id=job,
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
                },
                metadata={_MARK: config.name, _DIGEST: digest},
            )
    print(
        f"{job} at {address}: goes on without this terminal, and the same command follows it again"
        f"\nto stop it: ray job stop --address {address} {job}",
        flush=True,
    )
    try:
        return _Job(client, job).follow()
    except KeyboardInterrupt:
        print("the search goes on without this terminal", file=sys.stderr)
        return 130


def _connect(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--submit: {address!r} is no URL; type `--submit http://127.0.0.1:8265`")
    # Ray takes these before what it is given.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # Ray says twice what it uploads
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except Exception as error:  # whatever lies between here and the cluster
        message = one_line(error, 300)
        if "token" in message.lower() or "401" in message or "403" in message:
            raise InputError(
                f"--submit: {address} wants this cluster's token: set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to what the cluster was started with"
            ) from None
        raise InputError(
            f"--submit: no Ray cluster answers at {address} ({message}); open the tunnel first, "
            "like `ray dashboard cluster.yaml`"
        ) from None
    return client


def _running(client: JobSubmissionClient, name: str, digest: str, address: str) -> str | None:
    for job in client.list_jobs():
        told = job.metadata or {}
        if told.get(_MARK) == name and not job.status.is_terminal():
            if told.get(_DIGEST) != digest:
                raise InputError(
                    f"--submit: {job.submission_id} runs {name!r} with another configuration; give "
                    "`--name NEW`, or stop it first: "
                    f"`ray job stop --address {address} {job.submission_id}`"
                )
            return str(job.submission_id)
    return None


@contextlib.contextmanager
def _luggage(config: SearchConfig) -> Iterator[Path]:
    """A folder with all that the job needs and nothing else of this machine."""
    with tempfile.TemporaryDirectory(prefix="dpo-tune-") as name:
        folder = Path(name)
        sources = Path(__file__).parent.parent
        for package in _PACKAGES:
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(sources / package, folder / package, ignore=unwanted)
        yaml_file.write_yaml(folder, _as_sent(config, folder), only_set=True)
        yield folder


def _as_sent(config: SearchConfig, folder: Path) -> SearchConfig:
    """The config with relative paths pointing into the folder, to which the data is copied.

    An absolute path is taken for one of the cluster's.
    """
    model = Path(config.model.id)
    if not model.is_absolute() and model.is_dir():
        raise InputError(
            f"model.id: {config.model.id} lies on this machine; put it on the Hub, or where the "
            "cluster's nodes see it, and give that absolute path"
        )
    data = Path(config.data.id)
    if data.is_absolute() or not data.exists():
        return config
    target = folder / "data" / data.name
    target.parent.mkdir()
    if data.is_dir():
        shutil.copytree(data, target)
    else:
        shutil.copy(data, target)
    sent = config.data.model_copy(update={"id": str(target.relative_to(folder))})
    return config.model_copy(update={"data": sent})


class _Job:
    """A job as its log and its state show it, over lost connections."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client = client
        self._job = job
        self._shown = 0
        """Characters of the log that were printed."""
        self._unreachable = False

    def follow(self) -> int:
        """Prints the driver's output until the job ends; returns its exit code."""
        while (details := self._details()) is None or not details.status.is_terminal():
            with contextlib.suppress(Exception):  # `_details` says what is wrong
                asyncio.run(self._tail())
            time.sleep(0.2)
        try:
            print(self._client.get_job_logs(self._job)[self._shown :], end="", flush=True)
        except Exception as error:  # how it ended is known; its last lines stay on the cluster
            print(
                f"the end of its log could not be read ({one_line(error, 300)}); to see it: "
                f"ray job logs {self._job}",
                file=sys.stderr,
            )
        if details.status == "STOPPED":
            print("stopped; the same command goes on with it", file=sys.stderr)
            return 130
        if details.driver_exit_code is None:
            why = one_line(details.message, 500)
            raise InputError(f"--submit: {self._job} did not run: {why}")
        return int(details.driver_exit_code)

    def _details(self) -> Any:
        try:
            details = self._client.get_job_info(self._job)
        except Exception as error:
            if "does not exist" in str(error):
                raise InputError(
                    f"--submit: the cluster does not know {self._job} any more: its head is a new "
                    "one; the same command goes on with the search"
                ) from None
            if not self._unreachable:
                print("the cluster does not answer; waiting", file=sys.stderr, flush=True)
            self._unreachable = True
            time.sleep(_RETRY_SECONDS)
            return None
        self._unreachable = False
        return details

    async def _tail(self) -> None:
        """Prints the log as it grows, from its beginning but for what was shown before."""
        seen = 0
        async for text in self._client.tail_job_logs(self._job):
            print(text[max(0, self._shown - seen) :], end="", flush=True)
            seen += len(text)
            self._shown = max(self._shown, seen)
