"""The GraphQL operations for runs of a sweep, and the runs and sweeps that they store.

There are no agents, and artifacts have no content. Unknown operations are answered with 400.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.helpers.wandb_server import WandbServer

ENTITY = "acme"
Variables = dict[str, Any]


@dataclass
class Run:
    """One run, as the server stores it."""

    id: str
    project: str
    entity: str
    sent: dict[str, Any] = field(default_factory=dict)
    """The last value of each field of UpsertBucket: groupName, tags, sweep, …"""
    history: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    preempting: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run, without the client's own entries."""
        content = json.loads(self.sent.get("config") or "{}")
        return {key: entry["value"] for key, entry in content.items() if key != "_wandb"}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the history."""
        return [json.loads(line) for line in self.history]


@dataclass
class Sweep:
    """One sweep, as the server stores it."""

    name: str
    config: str
    state: str = "RUNNING"


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _project(entity: str, project: str) -> dict[str, Any]:
    return {"id": project, "name": project, "entity": {"id": entity, "name": entity}}


def viewer(*_: Any) -> Any:
    who = {"id": "1", "entity": ENTITY, "username": "jo", "email": None, "flags": "{}"}
    return {"viewer": {**who, "teams": {"edges": []}}}


def features(*_: Any) -> Any:
    return {"serverInfo": {"features": []}}


def resume_status(server: WandbServer, given: Variables) -> Any:
    entity = given.get("entity") or ENTITY
    run = server.runs.get(given["name"])
    bucket = None
    if run is not None:
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.sent.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps(run.history[-1:]),
            "eventsTail": "[]",
            "config": run.sent.get("config") or "{}",
            "tags": run.sent.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
    return {"model": {**_project(entity, given["project"]), "bucket": bucket}}


def upsert_bucket(server: WandbServer, given: Variables) -> Any:
    entity, project = given.get("entity") or ENTITY, given.get("project") or "uncategorized"
    run_id = given.get("name") or given["id"]
    if given.get("sweep") and given["sweep"] not in server.sweeps:
        raise Refusal(404, f"sweep {given['sweep']} not found")
    inserted = run_id not in server.runs
    run = server.runs.setdefault(run_id, Run(run_id, project, entity))
    run.sent |= {name: value for name, value in given.items() if value is not None}
    if run.exit_code is not None:  # it goes on
        run.state, run.exit_code, run.preempting = "running", None, False
    bucket = {
        "id": run.id,
        "name": run.id,
        "displayName": run.sent.get("displayName"),
        "description": None,
        "config": run.sent.get("config"),
        "sweepName": run.sent.get("sweep"),
        "project": _project(run.entity, run.project),
        "historyLineCount": len(run.history),
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def create_run_files(server: WandbServer, given: Variables) -> Any:
    run = server.find(given["entity"], given["project"], given["run"])
    files = [
        {"name": name, "uploadUrl": f"{server.url}/upload/{run.id}/{name}"}
        for name in given["files"]
    ]
    return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}


def upsert_sweep(server: WandbServer, given: Variables) -> Any:
    if given.get("id"):
        sweep = server.sweeps[given["id"]]
        sweep.state = given["state"]
    else:
        sweep = Sweep(secrets.token_hex(4), given["config"])
        server.sweeps[sweep.name] = sweep
    project = _project(given.get("entityName") or ENTITY, given["projectName"])
    described = {"name": sweep.name, "state": sweep.state, "project": project}
    return {"upsertSweep": {"sweep": described, "configValidationWarnings": []}}


def sweep_with_runs(server: WandbServer, given: Variables) -> Any:
    sweep = server.sweeps.get(given["sweep"])
    if sweep is None:
        return {"project": {"sweep": None}}
    described = {"id": sweep.name, "name": sweep.name, "state": sweep.state, "config": sweep.config}
    return {"project": {"sweep": {**described, "runs": {"edges": []}}}}


def create_artifact(server: WandbServer, given: Variables) -> Any:
    wanted = given["input"]
    server.artifacts[wanted["artifactCollectionName"]] = wanted
    sequence = {"latestArtifact": None}
    made = {
        "id": wanted["artifactCollectionName"],
        "state": "PENDING",
        "artifactSequence": sequence,
    }
    return {"createArtifact": {"artifact": made}}


def create_manifest(server: WandbServer, given: Variables) -> Any:
    server.find(given["entityName"], given["projectName"], given["runName"])
    url = f"{server.url}/upload/{given['runName']}/{given['artifactID']}.json"
    file = {"id": "1", "uploadUrl": url, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": url, "file": file}}}


def update_manifest(_: WandbServer, given: Variables) -> Any:
    file = {"id": "1", "uploadUrl": given["artifactManifestID"], "uploadHeaders": []}
    manifest = {"id": given["artifactManifestID"], "file": file}
    return {"updateArtifactManifest": {"artifactManifest": manifest}}


def commit_artifact(server: WandbServer, given: Variables) -> Any:
    made = server.artifacts[given["artifactID"]]
    made["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": made["digest"]}}}


def create_artifact_files(server: WandbServer, given: Variables) -> Any:
    edges = []
    for file in given["input"]["artifactFiles"]:
        artifact, name = file["artifactID"], file["name"]
        url = f"{server.url}/upload/{server.artifacts[artifact]['runName']}/{artifact}/{name}"
        node = {"storagePath": name, "uploadUrl": url, "uploadHeaders": []}
        edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": artifact}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def artifact_type(*_: Any) -> Any:
    return {"project": {"artifact": None}}


def digest_algorithm(*_: Any) -> Any:
    return {"project": None}


OPERATIONS: dict[str, Callable[[WandbServer, Variables], Any]] = {
    "Viewer": viewer,
    "GetViewer": viewer,
    "GetDefaultEntity": viewer,
    "ServerFeaturesQuery": features,
    "RunResumeStatus": resume_status,
    "UpsertBucket": upsert_bucket,
    "CreateRunFiles": create_run_files,
    "UpsertSweep": upsert_sweep,
    "SweepWithRuns": sweep_with_runs,
    "FetchArtifactDigestAlgorithm": digest_algorithm,
    "CreateArtifact": create_artifact,
    "ArtifactType": artifact_type,
    "CreateArtifactFiles": create_artifact_files,
    "CreateArtifactManifest": create_manifest,
    "UpdateArtifactManifest": update_manifest,
    "CommitArtifact": commit_artifact,
}
