"""A Hugging Face Hub on 127.0.0.1 that serves folders to the real clients under HF_ENDPOINT.

It owns the routes, headers and refusals that huggingface_hub, transformers and datasets need for
downloads. `hub_uploads.py` adds uploads. It has no redirects and no paging, and answers 501 to
requests that it does not know.

    with HubServer({"models/acme/tiny": folder, "datasets/acme/truthy": folder2}) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}

huggingface_hub reads HF_ENDPOINT once, on import: set it in the environment of a child process.
"""

import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.message import Message
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
# Files that the Hub's default .gitattributes sends to LFS, as far as our tests have them.
LFS_SUFFIXES = {".arrow", ".bin", ".gz", ".parquet", ".pt", ".safetensors", ".zip"}


class Request(NamedTuple):
    """One request, with its quoted path and query, and the status of its answer."""

    method: str
    path: str
    status: int


class HubServer:
    """Serve repositories, keyed "models/{owner}/{name}" or "datasets/{owner}/{name}", from folders.

    Each folder is read once, here, and becomes one commit, the head of `main`. Without `token`, a
    key in `private` does not exist for the caller, and one in `gated` is listed but not downloaded.
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        token: str | None = None,
        private: Collection[str] = (),
        gated: Collection[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        for key in {*folders, *private, *gated}:
            if key not in folders or not re.fullmatch(rf"(models|datasets)/{ID}", key):
                raise ValueError(f"{key!r}: serve 'models/owner/name' or 'datasets/owner/name'")
        self.token = token
        self.requests: list[Request] = []
        self.routes = ROUTES
        self.account: dict[str, Any] = {"role": "write"}
        """The rights of the token, as whoami returns them."""
        self.repositories: dict[str, Repository] = {}
        for key, folder in folders.items():
            self.repositories[key] = Repository(key in private, key in gated)
            self.repositories[key].add_commit(read_folder(Path(folder)))
        self._server = ThreadingHTTPServer((host, 0), lambda *args: _Handler(self, *args))
        self.url = f"http://{host}:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        # With the default poll every test would wait up to 0.5 s at its end.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str) -> Any:
        """Return the fault for this request; this class has none."""

    def sha(self, key: str) -> str:
        """Return the commit of `main` of this repository."""
        return self.repositories[key].branches["main"]


# Storage: each commit is a whole snapshot, so an upload only adds one.


class File:
    """A file's bytes, its ETag and its entry in the tree, with git's id and perhaps LFS's."""

    def __init__(self, content: bytes, lfs: bool) -> None:
        self.content, size, in_git = content, len(content), content
        self.entry: dict[str, Any] = {"type": "file", "size": size}
        if lfs:
            oid = sha256(content).hexdigest()
            spec = "https://git-lfs.github.com/spec/v1"
            in_git = f"version {spec}\noid sha256:{oid}\nsize {size}\n".encode()
            self.entry["lfs"] = {"oid": oid, "size": size, "pointerSize": len(in_git)}
        self.entry["oid"] = sha1(b"blob %d\0%s" % (len(in_git), in_git)).hexdigest()
        self.etag = oid if lfs else self.entry["oid"]


@dataclass
class Repository:
    """Snapshots of files by path, under the sha of their commit, and the branches among them."""

    private: bool
    gated: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_commit(self, files: dict[str, File], branch: str = "main", seed: str = "") -> str:
        """Add a snapshot as the head of a branch and return its sha."""
        listing = "".join(f"{path}\0{file.entry['oid']}\n" for path, file in files.items())
        sha = sha1((seed + listing).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


def read_folder(folder: Path) -> dict[str, File]:
    """Return every file under the folder, by its path in the repository."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give each repository one to serve")
    return {
        path.relative_to(folder).as_posix(): File(path.read_bytes(), path.suffix in LFS_SUFFIXES)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Requests and answers: routes are functions of a call. Only the handler uses the socket.


@dataclass(frozen=True)
class Answer:
    """The body, the status and the headers of an answer."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error answer. `code` decides which of its exceptions the client raises."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.answer = Answer({"error": message}, status, {k: v for k, v in headers.items() if v})


@dataclass(frozen=True)
class Call:
    """A parsed request: `where` has the parts of its path, `flags` the options of its query."""

    hub: HubServer
    where: dict[str, str]
    flags: set[str]
    headers: Message
    body: bytes
    signed_in: bool

    def repository(self) -> Repository:
        """Return the requested repository; raises Refusal."""
        repo = self.hub.repositories.get(f"{self.where.get('kind', 'models')}/{self.where['id']}")
        if repo is not None and (self.signed_in or not repo.private):
            return repo
        if self.signed_in:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        # Missing and private repositories look the same without a login. The answer needs the code,
        # because without it the client reads a 401 as RepositoryNotFoundError only under https.
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")

    def snapshot(self) -> tuple[str, dict[str, File]]:
        """Return the sha and the files of the requested revision."""
        repo, revision = self.repository(), self.where.get("revision", "main")
        sha = repo.branches.get(revision) or repo.tags.get(revision, revision)
        if sha not in repo.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]


def whoami(call: Call) -> Answer:
    """Answer who the caller is."""
    if not call.signed_in:
        raise Refusal(401, "Invalid username or password.")
    token = {"displayName": "test", **call.hub.account}
    auth = {"type": "access_token", "accessToken": token}
    orgs = [{"name": "team"}]
    return Answer({"type": "user", "name": "acme", "fullname": "Acme", "orgs": orgs, "auth": auth})


def info(call: Call) -> Answer:
    """Answer the metadata of a repository."""
    repo, (sha, files) = call.repository(), call.snapshot()
    name = call.where["id"]
    about = {"_id": sha[:24], "id": name, "modelId": name, "author": name.split("/")[0]}
    access = {"private": repo.private, "gated": "manual" if repo.gated else False}
    counts = {"disabled": False, "downloads": 0, "likes": 0, "tags": []}
    dates = {"sha": sha, "createdAt": DATE, "lastModified": DATE}
    siblings = [{"rfilename": path} for path in files]
    return Answer({**about, **access, **counts, **dates, "siblings": siblings})


def refs(call: Call) -> Answer:
    """Answer the branches and tags of a repository."""
    branches, tags = (
        [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
            for name, sha in named.items()
        ]
        for kind, named in (("heads", call.repository().branches), ("tags", call.repository().tags))
    )
    return Answer({"branches": branches, "converts": [], "tags": tags, "pullRequests": []})


def entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Return files and the folders that hold them, by path."""
    found = {path: {"path": path, **file.entry} for path, file in sorted(files.items())}
    for folder in {str(above) for path in files for above in PurePosixPath(path).parents} - {"."}:
        inside = [f"{p}\0{f.entry['oid']}" for p, f in files.items() if p.startswith(f"{folder}/")]
        oid = sha1("\n".join(inside).encode()).hexdigest()
        found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
    return found


def tree(call: Call) -> Answer:
    """Answer the entries of a folder."""
    (sha, files), folder = call.snapshot(), call.where.get("path", "")
    found, start = entries(files), f"{folder}/" if folder else ""
    inside = [path for path in found if path.startswith(start)]
    if folder and not inside:
        raise Refusal(404, f'{folder} does not exist on "{sha}"', "EntryNotFound", sha)
    if "recursive" not in call.flags:
        inside = [path for path in inside if "/" not in path.removeprefix(start)]
    return Answer([found[path] for path in inside])


def resolve(call: Call) -> Answer:
    """Answer the content of a file, or a range of it."""
    (sha, files), path = call.snapshot(), call.where["path"]
    if call.repository().gated and not call.signed_in:
        message = f"Access to {call.where['id']} is restricted. Please log in."
        raise Refusal(401, message, "GatedRepo", sha)
    if path not in files:
        # The commit lets the client cache that the file is absent, for offline loads.
        raise Refusal(404, "Entry not found", "EntryNotFound", sha)
    file, size = files[path], len(files[path].content)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if span is None:
        return Answer(file.content, 200, headers)
    first, last = int(span[1]), min(int(span[2] or size), size - 1)
    if first > last:
        return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(file.content[first : last + 1], 206, headers)


ID = r"(?P<id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{ID}"
REVISION = r"/(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[Call], Answer]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("GET", rf"{API}(/revision{REVISION})?", info),
    ("GET", rf"{API}/refs", refs),
    ("GET", rf"{API}/tree{REVISION}(/(?P<path>.+))?", tree),
    ("HEAD|GET", rf"/((?P<kind>datasets)/)?{ID}/resolve{REVISION}/(?P<path>.+)", resolve),
]
FLAGS = {"recursive", "include_prs"}  # "blobs" or "expand" would ask for more than we list


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive, as the Hub
    disable_nagle_algorithm = True  # otherwise each body waits 40 ms for the header's ACK

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.hub.fault(self.command, self.path)
        try:
            if fault is not None and fault.status:
                raise Refusal(fault.status, f"this fault answers {fault.status}")
            answer = self._route(body) if fault is None or fault.is_after else Answer()
        except Refusal as refusal:
            answer = refusal.answer
        if fault is not None:
            answer.headers.update(fault.headers)
        if fault is not None and not fault.status:
            self.hub.requests.append(Request(self.command, self.path, 0))
            self.close_connection = True
            return
        self.hub.requests.append(Request(self.command, self.path, answer.status))
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", f"application/{'octet-stream' if raw else 'json'}")
        self.send_header("Content-Length", str(len(content)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _route(self, body: bytes) -> Answer:
        authorization = self.headers.get("Authorization")
        signed_in = authorization == f"Bearer {self.hub.token}" and self.hub.token is not None
        if authorization is not None and not signed_in:
            raise Refusal(401, "Invalid credentials in Authorization header")
        url = urlsplit(self.path)
        flags = {name for name, values in parse_qs(url.query).items() if values != ["false"]}
        for methods, pattern, route in self.hub.routes if flags <= FLAGS else ():
            # Match the quoted path, since a revision may hold a slash ("refs%2Fconvert%2Fparquet").
            found = re.fullmatch(pattern, url.path)
            if found and re.fullmatch(methods, self.command):
                where = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                return route(Call(self.hub, where, flags, self.headers, body, signed_in))
        raise Refusal(501, f"hub_server.py has no route for {self.command} {self.path}")

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: `HubServer.requests` is the record."""
