"""The winner on the Hugging Face Hub: asked for before a search, compared, pushed in one commit.

A push that failed or was killed begins again where it stood: what the Hub has is not sent twice.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from dpo_train.config import InputError, parse
from tune import card, hub_access, repository
from tune.config import HubConfig, SearchConfig, load_search
from tune.records import Publication, Results, load_results, write_results

_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt",
                "adapter_config.json", "config.json", "generation_config.json")  # fmt: skip
"""What another winner may have left in a repository and a reader would take for this one's."""


class PushFailed(Exception):
    """The winner was not pushed and lies where it was. The message ends with what to type."""


def check(config: SearchConfig) -> str:
    """Asks the Hub whether this search's winner may be pushed, and what is there; one line.

    Raises InputError if not: the login, its right to write, the name, the licence.
    """
    repository.find_license(config, config.hub)
    return hub_access.check(config.hub)


def push_if_asked(results: Results, config: SearchConfig) -> Results:
    """At the end of a search: pushes the winner as `hub.when` says, and notes what came of it."""
    hub, before = config.hub, results.published
    if hub.when == "never" or results.winner is None or (before and not before.error):
        return results
    try:
        if hub.when == "improved" and (reason := _not_better(hub, results)):
            print(f"not pushed: {reason}", flush=True)
            return results
        return _push(results, config, hub, "main", "")
    except (InputError, PushFailed) as error:
        return _noted(results, Publication(repo=str(hub.repo), error=str(error)))


def push(run: str | Path, branch: str = "main", tag: str = "", **changes: Any) -> Publication:
    """Pushes a run's winner in one commit; `changes` are to its `hub`: repo, private, and so on.

    Raises InputError where the Hub would not have it, PushFailed where it could not be sent.
    """
    results, config, hub = _opened(run, changes)
    if hub.repo is None:
        raise InputError("hub.repo: say which repository, like `--repo your-name/its-name`")
    pushed = _push(results, config, hub, branch, tag).published
    assert pushed is not None
    return pushed


def write(run: str | Path, folder: Path | None = None, **changes: Any) -> Path:
    """Writes what `push` would push to a folder, by default `hub/` in the run folder.

    Raises InputError.
    """
    results, config, hub = _opened(run, changes)
    if folder is None:
        folder = results.folder / "hub"
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--to: {folder} holds something; name a new folder")
    repository.write(results, config, hub, folder)
    return folder


def _opened(run: str | Path, changes: dict[str, Any]) -> tuple[Results, SearchConfig, HubConfig]:
    results = load_results(run)
    config = load_search(results.folder / "search.yaml")
    given = {name: value for name, value in changes.items() if value is not None}
    content = config.model_dump(mode="json", by_alias=True)
    asked = {f"hub.{name}": value for name, value in given.items()}
    return results, config, parse(SearchConfig, content, asked, "push").hub


def _push(results: Results, config: SearchConfig, hub: HubConfig, branch: str, tag: str) -> Results:
    folder = results.folder / "hub"
    hub_access.check(hub)
    repository.write(results, config, hub, folder)
    try:
        commit = hub_access.patiently(lambda: _upload(hub, folder, results, branch))
        if tag:
            hub_access.patiently(lambda: _tag(str(hub.repo), tag, commit))
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds, xet its own
        again = f"dpo-tune push {results.folder} --repo {hub.repo}"
        raise PushFailed(
            f"{hub.repo}: {hub_access.explain(error)}; the winner lies in {results.folder}/winner, "
            f"and to try again type: {again}"
        ) from None
    url = f"{constants.ENDPOINT}/{hub.repo}/tree/{commit}"
    return _noted(results, Publication(repo=hub.repo, commit=commit, url=url))


def _noted(results: Results, publication: Publication) -> Results:
    there = load_results(results.folder).model_copy(update={"published": publication})
    write_results(results.folder, there)
    return there.at(results.folder)


def _not_better(hub: HubConfig, results: Results) -> str:
    """Says why a winner is no improvement on what the repository holds; empty if it is one."""
    assert hub.repo is not None
    try:
        files = hub_access.patiently(lambda: HfApi().list_repo_files(str(hub.repo)))
        if not any(name.endswith(".safetensors") for name in files):
            return ""
        path = hub_access.patiently(lambda: hf_hub_download(str(hub.repo), "README.md"))
    except RepositoryNotFoundError:
        return ""
    except EntryNotFoundError:
        path = None
    except Exception as error:  # the library raises a dozen kinds
        raise PushFailed(
            f"{hub.repo}: {hub_access.explain(error)}; to push all the same: "
            f"dpo-tune push {results.folder}"
        ) from None
    text = Path(path).read_text(encoding="utf-8") if path else ""
    numbers = card.compared(ModelCard(text, ignore_metadata_errors=True), results)
    anyway = f"to push all the same: dpo-tune push {results.folder}"
    if numbers is None:
        return f"{hub.repo} has no number of the same test pairs to compare with; {anyway}"
    there, here = numbers
    name = results.objective.metric.removeprefix("eval/")
    is_better = here > there if results.objective.mode == "max" else here < there
    return "" if is_better else f"{hub.repo} has test {name} {there:g}, this {here:g}; {anyway}"


def _upload(hub: HubConfig, folder: Path, results: Results, branch: str) -> str:
    """The commit that holds the folder; nothing is sent that the repository has already."""
    assert hub.repo is not None
    assert results.winner is not None
    api = HfApi()
    api.create_repo(hub.repo, private=hub.private, exist_ok=True)
    hub_access.refuse_public(hub, bool(api.model_info(hub.repo).private))
    if branch != "main":
        api.create_branch(hub.repo, branch=branch, exist_ok=True)
    head = api.model_info(hub.repo, revision=branch).sha
    ours = {path.name: path for path in sorted(folder.iterdir())}
    metric = results.objective.metric
    value = results.winner.eval[metric.removeprefix("eval/")]
    test = results.winner.test.get(metric.removeprefix("eval/"))
    on_test = "" if test is None else f", {test:.4f} on the untouched test pairs"
    commit = api.create_commit(
        hub.repo,
        [
            *(CommitOperationAdd(name, path) for name, path in ours.items()),
            *(
                CommitOperationDelete(name)
                for name in api.list_repo_files(hub.repo, revision=head)
                if name not in ours and any(fnmatch(name, kind) for kind in _MODEL_FILES)
            ),
        ],
        commit_message=f"Winner of {results.name}, trial {results.winner.trial}",
        commit_description=f"{metric} {value:.4f} on held-out pairs{on_test}; best of "
        f"{len(results.trials)} trials",
        revision=branch,
        # Someone else's commit in between is refused by the Hub, not written over.
        parent_commit=head,
    )
    return str(commit.oid)


def _tag(repo: str, tag: str, commit: str) -> None:
    api = HfApi()
    for there in api.list_repo_refs(repo).tags:
        if there.name == tag and there.target_commit == commit:
            return
    api.create_tag(repo, tag=tag, revision=commit)
