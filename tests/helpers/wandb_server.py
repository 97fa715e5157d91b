"""A W&B server on 127.0.0.1, for the real client under WANDB_BASE_URL.

It owns the file stream and the uploads; `wandb_operations.py` has the GraphQL side. It refuses what
the real server refuses: a missing or short key, an unknown run, rows past the end.

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.wandb_operations import ENTITY, OPERATIONS, Refusal, Run, Sweep


class WandbServer:
    """Stores runs and sweeps, and counts the calls of each operation."""

    def __init__(self) -> None:
        self.key = secrets.token_hex(20)
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        """The request and the state of each artifact, by collection."""
        self.calls: Counter[str] = Counter()
        self.bodies: list[str] = []
        """Everything that was sent, for tests that search for secrets in it."""
        self.ill = ""
        """How the server fails: `errors` answers 500, `hang` nothing, `forgets` refuses rows."""
        self._closing = threading.Event()
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
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, key: str, body: bytes) -> Any:
        """Return the answer to a request. Raises Refusal."""
        if self.ill == "hang":
            # This request is never carried out, even after the server recovers: its client has
            # gone, and its content is older than what `wandb sync` has sent since.
            self._closing.wait(60)
            raise Refusal(500, "the server was ill")
        if self.ill == "errors":
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

    def _graphql(self, request: dict[str, Any]) -> Any:
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = found[1] if found else ""
        self.calls[name] += 1
        if name not in OPERATIONS:
            raise Refusal(400, f"wandb_server.py does not know {name!r}")
        return {"data": OPERATIONS[name](self, request.get("variables") or {})}

    def _file_stream(self, entity: str, project: str, run_id: str, sent: dict[str, Any]) -> Any:
        self.calls["file_stream"] += 1
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
        """Return a run; raises Refusal."""
        run = self.runs.get(run_id)
        if run is None or (run.entity, run.project) != (entity or ENTITY, project):
            raise Refusal(404, f"run {entity}/{project}/{run_id} not found")
        return run


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
        """Stay silent: `WandbServer.calls` is the record."""
