"""Checks whether the user may write to the Hub, retries failed requests, and explains errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NotRequired, TypedDict, TypeVar, cast

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dpo_train import hub_errors
from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError, one_line
from dpo_train.hub_errors import HF_LOGIN
from dpo_train.hub_offline import look_again
from tune.config.outputs import HubConfig
from tune.errors import Unreachable

T = TypeVar("T")
_RETRY_WAITS_SECONDS = (2.0, 8.0)
"""The waits before each retry. The Hub's client retries too, before we do."""
_LONGEST_WAIT_SECONDS = 60.0
_TEMPORARY_STATUSES = (408, 429, 500, 502, 503, 504)
_MEANINGS = {
    403: f"the token may not write there (403); give it that right and type `{HF_LOGIN}`",
    404: "there is no such repository or branch, or it is hidden from this login (404)",
    409: "something else there already has this name (409)",
    412: "someone else changed it in the meantime (412)",
    429: "the Hub got too many requests (429)",
}


class _Named(TypedDict):
    name: str


class _Scope(TypedDict, total=False):
    entity: _Named
    permissions: list[str]


# One key of the Hub's answer is `global`, which can't be a field name in Python.
_Rights = TypedDict("_Rights", {"global": list[str], "scoped": list[_Scope]}, total=False)


class _Token(TypedDict, total=False):
    role: str
    displayName: str
    fineGrained: _Rights


class _Auth(TypedDict, total=False):
    accessToken: _Token


class _Account(_Named):
    """The fields of the Hub's `whoami` that are read here."""

    orgs: NotRequired[list[_Named]]
    auth: NotRequired[_Auth]


def check(hub: HubConfig) -> str:
    """Asks the Hub whether the winner may be pushed, and returns the answer as one line.

    Raises InputError if it may not: no login, no right to write, a wrong name, or a public
    repository where a private one is wanted. Raises Unreachable if the Hub doesn't answer.
    """
    # What needs no server: the name, the connection's settings, a login.
    repo = hub.repo
    assert repo is not None
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"hub.repo: {one_line(error)}") from None
    to_folder = dpo_tune("push", "RUN", "--repo", repo, "--to", "FOLDER")
    elsewhere = f"or write the winner to a folder: `{to_folder}`"
    if out_of_reach := look_again():
        raise Unreachable(f"hub.repo: no way to the Hub ({out_of_reach}); try later, {elsewhere}")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"hub.repo: HF_HUB_OFFLINE is set; unset it, {elsewhere}")
    if get_token() is None:
        raise InputError(f"hub.repo: not logged in; type `{HF_LOGIN}`, {elsewhere}")
    # What the Hub knows: the account's rights, and the repository.
    api = HfApi()
    try:
        account = cast(_Account, with_retries(api.whoami))
        _refuse_other_owner(repo, account)
        if not with_retries(lambda: api.repo_exists(repo)):
            new = f"the push will create it as a {_visibility(hub.private)} repository"
            return f"{repo}: {account['name']} may write; {new}"
        with_retries(lambda: api.auth_check(repo, write=True))
        is_private = bool(with_retries(lambda: api.model_info(repo)).private)
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds
        kind = Unreachable if _is_temporary(error) else InputError
        raise kind(f"hub.repo: {explain(error)}") from None
    refuse_public(hub, is_private)
    return f"{repo}: {account['name']} may write; it is {_visibility(is_private)}"


def _refuse_other_owner(repo: str, account: _Account) -> None:
    owner = repo.partition("/")[0]
    owners = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    if owner not in owners:
        raise InputError(
            f"hub.repo: {account['name']} can't write to {owner!r}, only to {', '.join(owners)}; "
            f"type `--repo {owners[0]}/{repo.partition('/')[2]}`"
        )
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(
            f"hub.repo: the token {token.get('displayName', '')!r} may only read; make one that "
            f"may write at huggingface.co/settings/tokens and type `{HF_LOGIN}`"
        )
    if token.get("role") == "fineGrained" and not _may_write(token, owner, repo):
        raise InputError(
            f"hub.repo: the fine-grained token {token.get('displayName', '')!r} may not write to "
            f"{repo}; give it `repo.write` for {owner} at huggingface.co/settings/tokens"
        )


def _may_write(token: _Token, owner: str, repo: str) -> bool:
    rights = token.get("fineGrained", {})
    granted = list(rights.get("global", []))
    for scope in rights.get("scoped", []):
        if scope.get("entity", {}).get("name") in (owner, repo):
            granted += scope.get("permissions", [])
    return "repo.write" in granted


def refuse_public(hub: HubConfig, is_private: bool) -> None:
    """Raises InputError if the repository is public and the user wants a private one."""
    if hub.private and not is_private:
        raise InputError(
            f"hub.private: {hub.repo} is public; type `--public`, write `hub: {{private: false}}` "
            "in the YAML, or name another repository"
        )


def _visibility(private: bool) -> str:
    return "private" if private else "public"


def with_retries(action: Callable[[], T]) -> T:
    """Returns what the action returns, and repeats it after temporary errors.

    The waits grow, or are as long as the Hub asks for.
    """
    for wait in _RETRY_WAITS_SECONDS:
        try:
            return action()
        except Exception as error:
            if not _is_temporary(error):
                raise
            wait = min(_retry_after_seconds(error) or wait, _LONGEST_WAIT_SECONDS)
            print(f"{explain(error)}; trying again in {wait:g} s", flush=True)
            time.sleep(wait)
    return action()


def _is_temporary(error: Exception) -> bool:
    status = hub_errors.status(error)
    is_lost_connection = status is None and isinstance(error, HTTPError | ConnectionError)
    return status in _TEMPORARY_STATUSES or is_lost_connection


def _retry_after_seconds(error: Exception) -> float:
    """Returns how long the Hub asks to wait; 0 if it does not say."""
    given = (
        error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    )
    return float(given) if given.isdigit() else 0.0


def explain(error: Exception) -> str:
    """Returns the reason why the Hub refused a request of a push, on one short line."""
    if hub_errors.status(error) is None:  # xet has its own errors
        return hub_errors.unreachable(error)
    return hub_errors.explain(error, meanings=_MEANINGS)
