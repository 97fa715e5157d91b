"""The winner on the Hugging Face Hub: asked for before a search, compared, pushed in one commit.

A push that failed or was killed begins again where it stood: what the Hub has is not sent twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

from dpo_train import model_source
from dpo_train.command_line import dpo_tune
from dpo_train.config_base import Overrides, parse
from dpo_train.errors import InputError, one_line
from dpo_train.gguf.tensors import Quantization
from dpo_train.gguf.write import file_name
from dpo_train.storage import mirror
from tune.config.load import load_search
from tune.config.outputs import HubConfig
from tune.config.schema import SearchConfig
from tune.errors import PushFailed, Unreachable
from tune.publish import hub_access, model_card, repository
from tune.run_folder import redact
from tune.run_folder.driver_lease import only_driver
from tune.run_folder.paths import RunLike
from tune.run_folder.results import Publication, Results, load_results, write_results

_HOLDS_A_MODEL = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack")
_OF_ANOTHER_KIND = ("model*.safetensors", "model.safetensors.index.json", "adapter_*.safetensors",
                    "adapter_config.json", "config.json", "generation_config.json")  # fmt: skip
"""What another winner may have left at the repository's root, and transformers would load."""


def check(config: SearchConfig) -> str:
    """Asks the Hub whether this search's winner may be pushed, and what is there; one line.

    Raises InputError if not: the login, its right to write, the name, the licence.
    """
    about_repository = hub_access.check(config.hub)  # first, since it names a refused login best
    config = config.model_copy(update={"model": model_source.resolve(config.model)})
    repository.refuse_unpublishable_search(config, config.hub)
    repository.find_license(config, config.hub)
    return about_repository


def push_if_asked(results: Results, config: SearchConfig) -> Results:
    """At the end of a search: pushes the winner as `hub.when` says, and notes what came of it.

    What goes wrong is noted too: it costs the push, not the search that was paid.
    """
    hub, before = config.hub, results.published
    is_done = before is not None and not before.error and before.repo == hub.repo
    if hub.when == "never" or results.winner is None or is_done:
        return results
    job = _Push(results, config, hub)
    try:
        repository.refuse_unpublishable(results, config)
        parent = None
        if hub.when == "improved":
            reason, parent = _not_better(job)
            if reason:
                print(f"not pushed: {reason}", flush=True)
                return _noted(results, None)
        return _push(job, parent)
    except Exception as error:
        return _noted(results, Publication(repo=str(hub.repo), error=one_line(error, 1000)))


def push(run: RunLike, branch: str = "main", tag: str = "", **changes: Any) -> Publication:
    """Pushes a run's winner in one commit; `changes` are to its `hub`: repo, private, and so on.

    Raises InputError where the Hub would not have it, PushFailed where it could not be sent.
    """
    job = _opened(run, branch, tag, changes)
    if job.hub.repo is None:
        raise InputError("hub.repo: say which repository, like `--repo your-name/its-name`")
    with only_driver(job.results.folder):
        pushed = _push(job).published
    assert pushed is not None
    return pushed


def write(run: RunLike, folder: Path | None = None, **changes: Any) -> Path:
    """Writes what `push` would push to a folder, by default `hub/` in the run folder.

    Raises InputError.
    """
    job = _opened(run, "main", "", changes)
    if folder is None:
        folder = job.results.folder.hub
    else:
        repository.refuse_taken(folder)
    with only_driver(job.results.folder):
        repository.write(job.results, job.config, job.hub, folder)
    return folder


@dataclass(frozen=True)
class _Push:
    results: Results
    config: SearchConfig
    hub: HubConfig
    branch: str = "main"
    tag: str = ""

    @property
    def command(self) -> str:
        """What pushes the same again."""
        hub, usual, folder = self.hub, HubConfig(), self.results.folder
        words = ["push", folder.argument, "--repo", str(hub.repo)]
        words += [] if hub.private else ["--public"]
        words += ["--merged"] if hub.merged else []
        words += ["--dtype", hub.dtype] if hub.dtype != usual.dtype else []
        words += ["--gguf", hub.gguf] if hub.gguf else []
        words += ["--license", hub.license] if hub.license else []
        words += ["--branch", self.branch] if self.branch != "main" else []
        words += ["--tag", self.tag] if self.tag else []
        return dpo_tune(*words)


def _opened(run: RunLike, branch: str, tag: str, changes: Overrides) -> _Push:
    results = load_results(run)
    config = load_search(results.folder.search_yaml)
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("repo", config.hub.repo) != config.hub.repo:
        given.setdefault("private", True)  # what was said of one repository is not said of another
    content = config.model_dump(mode="json", by_alias=True)
    asked = {f"hub.{name}": value for name, value in given.items()}
    return _Push(results, config, parse(SearchConfig, content, asked, "push").hub, branch, tag)


def _push(job: _Push, parent: str | None = None) -> Results:
    """With `parent`, only onto that commit."""
    folder = job.results.folder.hub
    repo = str(job.hub.repo)
    try:
        hub_access.check(job.hub)
        repository.write(job.results, job.config, job.hub, folder)
        commit = _upload(job, folder, parent)
        url = f"{constants.ENDPOINT}/{repo}/tree/{commit}"
        noted = _noted(job.results, Publication(repo=repo, commit=commit, url=url))
        if job.tag:
            hub_access.patiently(lambda: _tag(repo, job.tag, commit))
        return noted
    except Unreachable as error:
        reason = str(error)
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds, xet its own
        reason = f"{repo}: {hub_access.explain(error)}"
    raise PushFailed(
        f"{reason}; the winner lies in {mirror.shown(job.results.folder.winner)}, and to try "
        f"again type: {job.command}"
    )


def _noted(results: Results, publication: Publication | None) -> Results:
    there = load_results(results.folder).model_copy(update={"published": publication})
    write_results(results.folder.results_json, there)
    return there.at(results.folder)


def _not_better(job: _Push) -> tuple[str, str | None]:
    """Why a winner is no improvement on what the repository holds, empty if it is one; and the
    commit with which it was compared."""
    repo, api = str(job.hub.repo), HfApi()
    anyway = f"to push all the same: {job.command}"
    try:
        head = str(hub_access.patiently(lambda: api.model_info(repo)).sha)
        files = hub_access.patiently(lambda: api.list_repo_files(repo, revision=head))
        if not any(PurePosixPath(name).suffix in _HOLDS_A_MODEL for name in files):
            return "", head
        path = hub_access.patiently(lambda: hf_hub_download(repo, "README.md", revision=head))
        text = Path(path).read_text(encoding="utf-8")
        there_card = ModelCard(text, ignore_metadata_errors=True)
        numbers = model_card.compared(there_card, redact.results(job.results, job.config))
    except RepositoryNotFoundError:
        return "", None
    except RemoteEntryNotFoundError:
        numbers = None
    except Exception as error:  # the library raises a dozen kinds, and a card may be anything
        raise PushFailed(f"{repo}: {hub_access.explain(error)}; {anyway}") from None
    if numbers is None:
        return f"{repo} has no number of the same test pairs to compare with; {anyway}", head
    there, here = numbers
    name = job.results.objective.metric.removeprefix("eval/")
    is_better = here > there if job.results.objective.mode == "max" else here < there
    return ("" if is_better else f"{repo} has test {name} {there:g}, this {here:g}; {anyway}"), head


def _upload(job: _Push, folder: Path, parent: str | None) -> str:
    """One commit that holds the folder; tried again after what may pass.

    `HfApi.upload_folder` would make several where it has xet.
    """
    repo, results, winner, api = str(job.hub.repo), job.results, job.results.winner, HfApi()
    assert winner is not None
    ours = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    metric = results.objective.metric
    name = metric.removeprefix("eval/")
    test = winner.test.metrics.get(name)
    replaced = [*_OF_ANOTHER_KIND, *_gguf_files(repo)]
    on_test = "" if test is None else f", {test:.4f} on the untouched test pairs"

    def commit() -> str:
        nonlocal parent
        api.create_repo(repo, private=job.hub.private, exist_ok=True)
        hub_access.refuse_public(job.hub, bool(api.model_info(repo).private))
        if job.branch != "main":
            api.create_branch(repo, branch=job.branch, exist_ok=True)
        head = api.model_info(repo, revision=job.branch).sha
        # Someone else's commit in between is refused by the Hub, not written over.
        parent = parent or head
        stale = [
            name
            for name in api.list_repo_files(repo, revision=head)
            if name not in ours and any(fnmatch(name, kind) for kind in replaced)
            if "/" not in name
        ]
        made = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, path) for name, path in ours.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Winner of {results.name}, trial {winner.trial}",
            commit_description=f"{metric} {winner.eval[name]:.4f} on held-out pairs{on_test}; "
            f"best of {len(results.trials)} trials",
            revision=job.branch,
            parent_commit=parent,
        )
        return str(made.oid)

    return hub_access.patiently(commit)


def _gguf_files(repo: str) -> list[str]:
    """What an earlier push with `gguf` may have left of another winner."""
    name = repo.rpartition("/")[2]
    return ["Modelfile", *(file_name(name, kind) for kind in get_args(Quantization))]


def _tag(repo: str, tag: str, commit: str) -> None:
    api = HfApi()
    there = {each.name: each.target_commit for each in api.list_repo_refs(repo).tags}
    if tag not in there:
        api.create_tag(repo, tag=tag, revision=commit)
    elif there[tag] != commit:
        raise InputError(
            f"--tag: {tag} stands at another commit of {repo}; the winner was pushed, as "
            f"commit {commit}: choose another name"
        )
