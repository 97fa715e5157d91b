"""The last step of a search: Ray Serve serves its winner, on the cluster that the search ran on.

This module writes a config file and calls Ray's own `serve deploy`. It knows nothing of the server.
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
"""The application's name. All searches use the same one, so that Ray replaces the replicas of the
last winner instead of ending its application."""
_MOST_SECONDS = 600.0
"""How long the replicas may take to start: a large model takes minutes to load."""


def check(config: SearchConfig) -> None:
    """Raise InputError before the search if its winner could not be served."""
    if config.trainer == "simulated":
        raise InputError("serve.after: simulated trials have no model to serve; leave it out")
    if RunFolder.at(config.folder).url is not None:
        raise InputError(
            f"serve.after: replicas can read the winner only from a path, but runs_dir is "
            f"{config.runs_dir}; leave serve.after out, or give a path that all nodes share"
        )
    if "RAY_ADDRESS" not in os.environ:
        raise InputError(
            "serve.after: without RAY_ADDRESS the search starts a Ray that ends with it; start a "
            "cluster with `ray start --head` and set RAY_ADDRESS to the address that it prints"
        )
    address = _dashboard()
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answers, but needs a token, which Ray's own command has
    except (OSError, ValueError) as error:
        raise InputError(
            f"serve.after: no Ray dashboard answers at {address} ({one_line(error)}); set "
            "RAY_DASHBOARD_ADDRESS to the address of the cluster's dashboard"
        ) from None


def deploy_if_configured(results: Results, config: SearchConfig) -> Results:
    """Serve the winner if `serve.after` says so, and note the URL in the results.

    An error is only noted: the search itself has succeeded.
    """
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
    """Serving failed. The message is one line."""


def _content(folder: RunFolder, config: SearchConfig) -> YamlTree:
    serve, winner = config.serve, folder.winner.absolute()
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0" if serve.open else "127.0.0.1", "port": serve.port},
        "applications": [
            {
                "name": _APPLICATION,
                "route_prefix": "/",
                "import_path": "serve.app:build",
                # Ray restarts replicas only if this config changes, so it holds a checksum.
                "runtime_env": {"env_vars": {"DPO_TUNE_WINNER": checksum(winner / STAMP)}},
                "args": {
                    "model": f"{config.name}={winner}",
                    "gpus": serve.gpus,
                    "min_replicas": serve.min_replicas,
                    "max_replicas": serve.max_replicas,
                },
            }
        ],
    }


def _dashboard() -> str:
    """Return the dashboard's address, found as Ray's own command does."""
    return os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265").rstrip("/")


def _serve(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "serve"), *arguments, "--address", _dashboard()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise _Failed(f"`serve {arguments[0]}` failed: {one_line(lines[-1], 300)}")
    return done.stdout


def _wait_until_running() -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        status = YAML(typ="safe", pure=True).load(_serve("status")) or {}
        application = status.get("applications", {}).get(_APPLICATION, {})
        if application.get("status") == "RUNNING":
            return
        if application.get("status") == "DEPLOY_FAILED":
            raise _Failed(one_line(application.get("message", "the server did not start"), 300))
        time.sleep(1)
    raise _Failed(
        f"no replica was ready after {_MOST_SECONDS:.0f} seconds; `serve status` says more"
    )


def _answering(config: SearchConfig) -> str:
    url = f"http://127.0.0.1:{config.serve.port}"
    try:
        urllib.request.urlopen(f"{url}/readyz", timeout=30).close()
    except OSError as error:  # Ray Serve keeps the port that it was started with
        raise _Failed(
            f"nothing answers at {url} ({one_line(error)}); Serve may have been started on another "
            "port"
        ) from None
    return url
