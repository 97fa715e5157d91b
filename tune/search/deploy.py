"""The last step of a search: its winner is served by Ray Serve, on the cluster that it ran on.

Writes a config file and lets Ray's own `serve deploy` do it; knows nothing of what answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from ruamel.yaml import YAML

from dpo_train.command_line import script
from dpo_train.config_base import YamlTree
from dpo_train.errors import DpoError, InputError, one_line
from dpo_train.storage.files import checksum
from tune.config.schema import SearchConfig
from tune.run_folder.exports import STAMP
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Deployment, Results, write_results
from tune.run_folder.yaml_file import dump_yaml

_APPLICATION = "winner"
"""One name for all searches: Ray then swaps replicas, where it would end another application."""
_MOST_SECONDS = 600.0
"""Until the replicas must be there: a large model takes minutes to load."""


def check(config: SearchConfig) -> None:
    """Raises InputError if the winner could not be served: better now than after the search."""
    if config.trainer == "simulated":
        raise InputError("serve.after: simulated trials leave no model; leave it out")
    if RunFolder.at(config.folder).url is not None:
        raise InputError(
            f"serve.after: replicas read the winner from a path, and runs_dir is "
            f"{config.runs_dir}; leave serve.after out, or give a path that all nodes share"
        )
    if "RAY_ADDRESS" not in os.environ:
        raise InputError(
            "serve.after: the search would run on a Ray of its own, which ends with it; start a "
            "cluster with `ray start --head` and set RAY_ADDRESS to what it says"
        )
    address = _dashboard()
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
    except urllib.error.HTTPError:
        return  # it is there, and asks for a token that Ray's command has
    except (OSError, ValueError) as error:
        raise InputError(
            f"serve.after: no Ray dashboard answers at {address} ({one_line(error)}); say "
            "where the cluster's is with RAY_DASHBOARD_ADDRESS"
        ) from None


def deploy_if_asked(results: Results, config: SearchConfig) -> Results:
    """Serves the winner as `serve.after` says, and notes where, or what went wrong: that costs the
    serving, not the search that was paid."""
    if not config.serve.after or results.winner is None:
        return results
    if results.served is not None and not results.served.error:
        return results
    path = results.folder.serve_yaml
    dump_yaml(path, _content(results.folder, config))
    try:
        _serve("deploy", str(path.absolute()))
        _wait_until_running()
        served = Deployment(url=_answering(config))
    except _Failed as error:
        again = script("serve", "deploy", str(path))
        served = Deployment(error=f"{error}; to try again: {again}")
    results = results.model_copy(update={"served": served}).at(results.folder)
    write_results(results.folder.results_json, results)
    return results


class _Failed(DpoError):
    """Of Ray's command; one line."""


def _content(folder: RunFolder, config: SearchConfig) -> YamlTree:
    asked, winner = config.serve, folder.winner.absolute()
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0" if asked.open else "127.0.0.1", "port": asked.port},
        "applications": [
            {
                "name": _APPLICATION,
                "route_prefix": "/",
                "import_path": "serve.app:build",
                # Ray restarts replicas only where something here has changed.
                "runtime_env": {"env_vars": {"DPO_TUNE_WINNER": checksum(winner / STAMP)}},
                "args": {
                    "model": f"{config.name}={winner}",
                    "gpus": asked.gpus,
                    "min_replicas": asked.min_replicas,
                    "max_replicas": asked.max_replicas,
                },
            }
        ],
    }


def _dashboard() -> str:
    """As Ray's own command finds it."""
    return os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265").rstrip("/")


def _serve(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "serve"), *arguments, "--address", _dashboard()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise _Failed(f"`serve {arguments[0]}` failed: {one_line(told[-1], 300)}")
    return done.stdout


def _wait_until_running() -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        told = YAML(typ="safe", pure=True).load(_serve("status")) or {}
        application = told.get("applications", {}).get(_APPLICATION, {})
        if application.get("status") == "RUNNING":
            return
        if application.get("status") == "DEPLOY_FAILED":
            raise _Failed(one_line(application.get("message", "it did not start"), 300))
        time.sleep(1)
    raise _Failed(f"no replica was ready in {_MOST_SECONDS:.0f} seconds; see `serve status`")


def _answering(config: SearchConfig) -> str:
    url = f"http://127.0.0.1:{config.serve.port}"
    try:
        urllib.request.urlopen(f"{url}/readyz", timeout=30).close()
    except OSError as error:  # Ray Serve keeps the port that it was started with
        raise _Failed(
            f"nothing answers at {url} ({one_line(error)}); is Serve on another port?"
        ) from None
    return url
