"""Uploads to the Hub on loopback: new repositories, files, commits and tags.

It refuses what the real Hub refuses: a commit that names an object that was not uploaded, a wrong
checksum, a parent that is not the head, a missing login. It fails where a test asks for it.
"""

import base64
import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from tests.helpers.hub_server import (
    API,
    ID,
    LFS_SUFFIXES,
    REVISION,
    ROUTES,
    Answer,
    Call,
    File,
    HubServer,
    Refusal,
    Repository,
)


@dataclass
class Fault:
    """A failure of the next matching requests: an error status, or a broken connection."""

    method: str
    path: str
    """A regular expression that must match somewhere in the path."""
    status: int = 0
    """The status of the answer; with 0 the connection breaks without an answer."""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    is_after: bool = False
    """Whether the request is carried out before the connection breaks."""


class WritableHub(HubServer):
    """A Hub that one user, `acme`, and the organisation `team` may write to with `token`."""

    def __init__(self, folders: Mapping[str, str | Path], xet: Path | None = None) -> None:
        super().__init__(folders, token="hf_" + "t" * 34)
        self.routes = [*ROUTES, *UPLOADS]
        self.objects: dict[str, bytes] = {}
        self.xet = xet
        """The folder where hf_xet stores files; without it xet is refused."""
        self.faults: deque[Fault] = deque()
        self.commits: list[dict[str, Any]] = []
        """The header of each commit that was made."""

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        repository = self.repositories[f"models/{repo}"]
        sha = repository.branches.get(revision, revision)
        return {path: file.content for path, file in repository.commits[sha].items()}


def hub_of(call: Call) -> WritableHub:
    """Return the Hub of a call."""
    assert isinstance(call.hub, WritableHub)
    return call.hub


def sent(call: Call) -> Any:
    """Return the JSON body of a call with a login; raises Refusal."""
    if not call.signed_in:
        raise Refusal(401, "Invalid username or password.")
    return json.loads(call.body)


def create(call: Call) -> Answer:
    """Create a repository."""
    body = sent(call)
    owner = body.get("organization") or "acme"
    if owner not in ("acme", "team"):
        raise Refusal(403, f"You don't have the rights to create a model under {owner}")
    key = f"models/{owner}/{body['name']}"
    url = {"url": f"{call.hub.url}/{owner}/{body['name']}"}
    if key in call.hub.repositories:
        return Answer({"error": "You already created this model repo", **url}, 409)
    repository = Repository(body["visibility"] == "private", False)
    repository.add_commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
    call.hub.repositories[key] = repository
    return Answer(url)


def validate(call: Call) -> Answer:
    """Check the front matter of a card."""
    content = json.loads(call.body)["content"]
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        front = YAML(typ="safe", pure=True).load(found[1]) if found else None
    except YAMLError as error:
        front, problem = None, str(error)
    else:
        problem = "empty or missing yaml metadata in repo card"
    if not isinstance(front, dict):
        return Answer({"errors": [{"message": problem}], "warnings": []}, 400)
    return Answer({"errors": [], "warnings": []})


def preupload(call: Call) -> Answer:
    """Answer which files go to LFS."""
    (_, existing), answered = call.snapshot(), []
    for file in sent(call)["files"]:
        mode = "lfs" if Path(file["path"]).suffix in LFS_SUFFIXES else "regular"
        known = existing.get(file["path"])
        oid = {"oid": known.etag} if known else {}
        answered.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
    return Answer({"files": answered})


def lfs_batch(call: Call) -> Answer:
    """Answer where missing objects must be sent."""
    answered = []
    for requested in sent(call)["objects"]:
        oid = requested["oid"]
        url = f"{call.hub.url}/lfs/{oid}"
        actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        known = oid in hub_of(call).objects
        answered.append({**requested, **({} if known else {"actions": actions})})
    return Answer({"transfer": "basic", "objects": answered})


def lfs_put(call: Call) -> Answer:
    """Store an object."""
    if sha256(call.body).hexdigest() != call.where["oid"]:
        raise Refusal(400, "the checksum is not that of the content")
    hub_of(call).objects[call.where["oid"]] = call.body
    return Answer()


def lfs_verify(call: Call) -> Answer:
    """Check that an object was stored."""
    requested = json.loads(call.body)
    known = hub_of(call).objects.get(requested["oid"])
    if known is None or len(known) != requested["size"]:
        raise Refusal(404, "no such object")
    return Answer({})


def commit(call: Call) -> Answer:
    """Add a commit."""
    if not call.signed_in:
        raise Refusal(401, "Invalid username or password.")
    hub, (sha, files) = hub_of(call), call.snapshot()
    files, header = dict(files), {}
    for line in map(json.loads, call.body.decode().splitlines()):
        value = line["value"]
        if line["key"] == "header":
            header = value
        elif line["key"] == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects and hub.xet is None:
                raise Refusal(400, f"no object {value['oid']} was uploaded")
            # Files that xet stored are not read back: only their names are known here.
            files[value["path"]] = File(hub.objects.get(value["oid"], b""), True)
        elif line["key"] == "deletedFile":
            files.pop(value["path"])
    if header.get("parentCommit", sha) != sha:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    branch = call.where["revision"]
    hub.commits.append({**header, "branch": branch})
    made = call.repository().add_commit(files, branch, seed=f"{sha} {header['summary']}")
    url = f"{hub.url}/{call.where['id']}/commit/{made}"
    return Answer({"success": True, "commitUrl": url, "commitOid": made})


def branch(call: Call) -> Answer:
    """Create a branch."""
    sent(call)
    repository = call.repository()
    if call.where["name"] in repository.branches:
        return Answer({"error": "Reference already exists"}, 409)
    repository.branches[call.where["name"]] = repository.branches["main"]
    return Answer()


def tag(call: Call) -> Answer:
    """Create a tag."""
    name, (sha, _) = sent(call)["tag"], call.snapshot()
    tags = call.repository().tags
    if name in tags:
        return Answer({"error": "Tag reference already exists"}, 409)
    tags[name] = sha
    return Answer()


def may_write(call: Call) -> Answer:
    """Answer whether the caller may write."""
    call.repository()
    if not call.signed_in:
        raise Refusal(401, "Invalid username or password.")
    return Answer({})


def xet_token(call: Call) -> Answer:
    """Answer access to xet's store."""
    folder = hub_of(call).xet
    if folder is None:
        raise Refusal(501, "this Hub has no xet")
    access = {"casUrl": f"local://{folder}", "accessToken": "x", "exp": 4102444800}
    headers = {
        "X-Xet-Cas-Url": access["casUrl"],
        "X-Xet-Access-Token": "x",
        "X-Xet-Token-Expiration": "4102444800",
    }
    return Answer(access, 200, headers)


UPLOADS = [
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", rf"{API}/preupload{REVISION}", preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", lfs_verify),
    ("POST", rf"{API}/commit{REVISION}", commit),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", branch),
    ("POST", rf"{API}/tag{REVISION}", tag),
    ("GET", rf"{API}/auth-check/write", may_write),
    ("GET", rf"{API}/xet-write-token{REVISION}", xet_token),
]
