"""A W&B server on 127.0.0.1, for the real client under WANDB_BASE_URL.

It owns the GraphQL operations, the file stream and the uploads that runs of a sweep need, and
refuses what the real one refuses: no key or a short one, a run that nobody made, rows past the end.
It refuses to know agents and what lies in artifacts: what it lacks is answered with 400.

    with WandbServer() as server:
        env = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
"""

import base64
import gzip
import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "acme"
Variables = dict[str, Any]


@dataclass
class Run:
    """One run as the server has it."""

    id: str
    project: str
    entity: str
    sent: dict[str, Any] = field(default_factory=dict)
    """The last value of each field that UpsertBucket carried: groupName, tags, sweep, …"""
    history: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    preempting: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        content = json.loads(self.sent.get("config") or "{}")
        return {key: entry["value"] for key, entry in content.items() if key != "_wandb"}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]


@dataclass
class Sweep:
    name: str
    config: str
    state: str = "RUNNING"


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class WandbServer:
    """Keeps runs and sweeps, and counts what was asked, operation by operation."""

    def __init__(self) -> None:
        self.key = secrets.token_hex(20)
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        """By collection: what was asked for, and its state."""
        self.views: dict[str, Variables] = {}
        """Saved views of projects, by the name that people see."""
        self.asked: Counter[str] = Counter()
        self.bodies: list[str] = []
        """All that was sent, for a test that looks for what must not be."""
        self.ill = ""
        """From now on `errors` answers 500, `hang` nothing, `forgets` refuses all rows."""
        self._healthy = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.handle_error = lambda *_: None  # a client that was killed resets connections
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._healthy.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, key: str, body: bytes) -> Any:
        """The answer to a request. Raises Refusal."""
        if self.ill == "hang":
            self._healthy.wait(60)
        if self.ill in ("hang", "errors"):
            raise Refusal(500, "the server is ill")
        if method == "PUT" and path.startswith("/upload/"):
            return self._upload(path, body)  # signed URLs carry no key
        if key != self.key:
            raise Refusal(401, "user is not logged in" if len(key) >= 40 else "invalid key")
        with self._lock:
            if path == "/graphql":
                return self._graphql(json.loads(body))
            stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
            if stream:
                return self._file_stream(*stream.groups(), json.loads(body))
        raise Refusal(404, f"wandb_server.py has no route for {method} {path}")

    def _graphql(self, asked: dict[str, Any]) -> Any:
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
        self.asked[name] += 1
        if name not in OPERATIONS:
            raise Refusal(400, f"wandb_server.py does not know {name!r}")
        return {"data": OPERATIONS[name](self, asked.get("variables") or {})}

    def _file_stream(self, entity: str, project: str, run_id: str, sent: dict[str, Any]) -> Any:
        self.asked["file_stream"] += 1
        run = self.find(entity, project, "" if self.ill == "forgets" else run_id)
        files = sent.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            offset, lines = history["offset"], history["content"]
            if offset > len(run.history):
                raise Refusal(400, f"offset {offset} past the {len(run.history)} rows there are")
            run.history[offset : offset + len(lines)] = lines
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        run.preempting = run.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
            ended = "preempted" if run.preempting else "failed"
            run.state = ended if run.exit_code else "finished"
        return {"limits": {}}

    def _upload(self, path: str, body: bytes) -> Any:
        _, _, run_id, name = path.split("/", 3)
        self.runs[run_id].files[name] = body
        return {}

    def find(self, entity: str | None, project: str, run_id: str) -> Run:
        run = self.runs.get(run_id)
        if run is None or (run.entity, run.project) != (entity or ENTITY, project):
            raise Refusal(404, f"run {entity}/{project}/{run_id} not found")
        return run


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
    told = {"name": sweep.name, "state": sweep.state, "project": project}
    return {"upsertSweep": {"sweep": told, "configValidationWarnings": []}}


def sweep_with_runs(server: WandbServer, given: Variables) -> Any:
    sweep = server.sweeps.get(given["sweep"])
    if sweep is None:
        return {"project": {"sweep": None}}
    told = {"id": sweep.name, "name": sweep.name, "state": sweep.state, "config": sweep.config}
    return {"project": {"sweep": {**told, "runs": {"edges": []}}}}


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
    place = f"{server.url}/upload/{given['runName']}/{given['artifactID']}.json"
    file = {"id": "1", "uploadUrl": place, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": place, "file": file}}}


def update_manifest(_: WandbServer, given: Variables) -> Any:
    file = {"id": "1", "uploadUrl": given["artifactManifestID"], "uploadHeaders": []}
    told = {"id": given["artifactManifestID"], "file": file}
    return {"updateArtifactManifest": {"artifactManifest": told}}


def commit_artifact(server: WandbServer, given: Variables) -> Any:
    made = server.artifacts[given["artifactID"]]
    made["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": made["digest"]}}}


def create_artifact_files(server: WandbServer, given: Variables) -> Any:
    edges = []
    for file in given["input"]["artifactFiles"]:
        artifact, name = file["artifactID"], file["name"]
        place = f"{server.url}/upload/{server.artifacts[artifact]['runName']}/{artifact}/{name}"
        node = {"storagePath": name, "uploadUrl": place, "uploadHeaders": []}
        edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": artifact}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def artifact_type(*_: Any) -> Any:
    return {"project": {"artifact": None}}


def upsert_view(server: WandbServer, given: Variables) -> Any:
    server.views[given["displayName"]] = given
    view = {"id": "1", "name": given["name"]}
    return {"upsertView": {"view": view, "inserted": True}}


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
    "UpsertView2": upsert_view,
    "FetchArtifactDigestAlgorithm": digest_algorithm,
    "CreateArtifact": create_artifact,
    "ArtifactType": artifact_type,
    "CreateArtifactFiles": create_artifact_files,
    "CreateArtifactManifest": create_manifest,
    "UpdateArtifactManifest": update_manifest,
    "CommitArtifact": commit_artifact,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, server: WandbServer, *args: Any) -> None:
        self.wandb = server
        super().__init__(*args)

    def _handle(self) -> None:
        body = self._body()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.wandb.bodies.append(body.decode(errors="replace"))
        status = 200
        try:
            answer = self.wandb.answer(self.command, self.path, self._key(), body)
        except Refusal as refusal:
            status, answer = refusal.status, {"errors": [{"message": str(refusal)}]}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _key(self) -> str:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(value).decode().removeprefix("api:") if scheme == "Basic" else ""

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: `WandbServer.asked` is the record."""
