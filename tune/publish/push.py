"""Pushes the winner to the Hugging Face Hub in one commit, after a check and a comparison.

A push that failed or was killed can be repeated: files that the Hub already has are not sent again.
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

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack")
_MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "adapter_*.safetensors",
                "adapter_config.json", "config.json", "generation_config.json")  # fmt: skip
"""Files at the repository's root that transformers loads. Those of an earlier winner must go."""


def check(config: SearchConfig) -> str:
    """Checks before a search whether its winner can be pushed, and returns the answer as one line.

    Raises InputError if the login, its right to write, the name or the licence is wrong.
    """
    answer = hub_access.check(config.hub)  # first, since it explains a refused login best
    config = config.model_copy(update={"model": model_source.resolve(config.model)})
    repository.refuse_unpublishable_search(config, config.hub)
    repository.find_license(config, config.hub)
    return answer


def push_if_configured(results: Results, config: SearchConfig) -> Results:
    """Pushes the winner at the end of a search as `hub.when` says; returns results that record it.

    An error is recorded too and not raised: a failed push must not cost the search.
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
            reason, parent = _compare_with_published(job)
            if reason:
                print(f"not pushed: {reason}", flush=True)
                return _record(results, None)
        return _push(job, parent)
    except Exception as error:
        return _record(results, Publication(repo=str(hub.repo), error=one_line(error, 1000)))


def push(run: RunLike, branch: str = "main", tag: str = "", **changes: Any) -> Publication:
    """Pushes a run's winner in one commit.

    `changes` replace fields of the run's `hub` section, like repo or private. Raises InputError if
    the Hub or the check refuses the push, and PushFailed if sending fails.
    """
    job = _load_job(run, branch, tag, changes)
    if job.hub.repo is None:
        raise InputError("hub.repo: name the repository, like `--repo your-name/its-name`")
    with only_driver(job.results.folder):
        pushed = _push(job).published
    assert pushed is not None
    return pushed


def write(run: RunLike, folder: Path | None = None, **changes: Any) -> Path:
    """Writes what `push` would push to a folder and returns the folder.

    The default is `hub/` in the run folder. Raises InputError.
    """
    job = _load_job(run, "main", "", changes)
    if folder is None:
        folder = job.results.folder.hub
    else:
        repository.refuse_existing(folder)
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
        """The command that repeats this push."""
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


def _load_job(run: RunLike, branch: str, tag: str, changes: Overrides) -> _Push:
    results = load_results(run)
    config = load_search(results.folder.search_yaml)
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("repo", config.hub.repo) != config.hub.repo:
        # `private: false` in the YAML is meant for that repository, not for another one.
        given.setdefault("private", True)
    content = config.model_dump(mode="json", by_alias=True)
    overrides = {f"hub.{name}": value for name, value in given.items()}
    return _Push(results, config, parse(SearchConfig, content, overrides, "push").hub, branch, tag)


def _push(job: _Push, parent: str | None = None) -> Results:
    """Writes the repository and uploads it; with `parent` only on top of that commit."""
    folder = job.results.folder.hub
    repo = str(job.hub.repo)
    try:
        hub_access.check(job.hub)
        repository.write(job.results, job.config, job.hub, folder)
        commit = _upload(job, folder, parent)
        url = f"{constants.ENDPOINT}/{repo}/tree/{commit}"
        recorded = _record(job.results, Publication(repo=repo, commit=commit, url=url))
        if job.tag:
            hub_access.with_retries(lambda: _tag(repo, job.tag, commit))
        return recorded
    except Unreachable as error:
        reason = str(error)
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds, xet its own
        reason = f"{repo}: {hub_access.explain(error)}"
    winner = mirror.shown(job.results.folder.winner)
    raise PushFailed(f"{reason}; the winner is in {winner}; to try again type: {job.command}")


def _record(results: Results, publication: Publication | None) -> Results:
    """Writes the publication into results.json and returns the new results."""
    updated = load_results(results.folder).model_copy(update={"published": publication})
    write_results(results.folder.results_json, updated)
    return updated.at(results.folder)


def _compare_with_published(job: _Push) -> tuple[str, str | None]:
    """Compares the winner with the model in the repository.

    Returns why the winner is no improvement ("" if it is better), and the commit compared with
    (None for a new repository). Raises PushFailed.
    """
    repo, api = str(job.hub.repo), HfApi()
    anyway = f"to push it anyway type: {job.command}"
    try:
        head = str(hub_access.with_retries(lambda: api.model_info(repo)).sha)
        files = hub_access.with_retries(lambda: api.list_repo_files(repo, revision=head))
        if not any(PurePosixPath(name).suffix in _WEIGHT_SUFFIXES for name in files):
            return "", head
        path = hub_access.with_retries(lambda: hf_hub_download(repo, "README.md", revision=head))
        text = Path(path).read_text(encoding="utf-8")
        card = ModelCard(text, ignore_metadata_errors=True)
        numbers = model_card.compared(card, redact.results(job.results, job.config))
    except RepositoryNotFoundError:
        return "", None
    except RemoteEntryNotFoundError:
        numbers = None
    except Exception as error:  # the library raises a dozen kinds, and a card may be anything
        raise PushFailed(f"{repo}: {hub_access.explain(error)}; {anyway}") from None
    if numbers is None:
        return f"{repo} has no result on the same test pairs to compare with; {anyway}", head
    published, new = numbers
    name = job.results.objective.metric.removeprefix("eval/")
    if new > published if job.results.objective.mode == "max" else new < published:
        return "", head
    return f"{repo} has test {name} {published:g}, this winner {new:g}; {anyway}", head


def _upload(job: _Push, folder: Path, parent: str | None) -> str:
    """Uploads the folder as one commit, with retries, and returns the commit's id.

    `HfApi.upload_folder` would make several commits where it uses xet, so we make it ourselves.
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
    replaced = [*_MODEL_FILES, *_gguf_files(repo)]
    on_test = "" if test is None else f", {test:.4f} on the test pairs"

    def commit() -> str:
        nonlocal parent
        api.create_repo(repo, private=job.hub.private, exist_ok=True)
        hub_access.refuse_public(job.hub, bool(api.model_info(repo).private))
        if job.branch != "main":
            api.create_branch(repo, branch=job.branch, exist_ok=True)
        head = api.model_info(repo, revision=job.branch).sha
        # Another commit may arrive before ours: with a parent the Hub then refuses ours, so we
        # don't overwrite it.
        parent = parent or head
        stale = [
            name
            for name in api.list_repo_files(repo, revision=head)
            if name not in ours and any(fnmatch(name, kind) for kind in replaced)
            if "/" not in name
        ]
        created = api.create_commit(
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
        return str(created.oid)

    return hub_access.with_retries(commit)


def _gguf_files(repo: str) -> list[str]:
    """Returns the GGUF files that an earlier push may have left in the repository."""
    name = repo.rpartition("/")[2]
    return ["Modelfile", *(file_name(name, kind) for kind in get_args(Quantization))]


def _tag(repo: str, tag: str, commit: str) -> None:
    api = HfApi()
    existing = {each.name: each.target_commit for each in api.list_repo_refs(repo).tags}
    if tag not in existing:
        api.create_tag(repo, tag=tag, revision=commit)
    elif existing[tag] != commit:
        raise InputError(
            f"--tag: {repo} already has the tag {tag} at another commit; the winner was pushed as "
            f"commit {commit}: choose another tag"
        )
