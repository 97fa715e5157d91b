"""What is known of the Hub: whether one may write, when to try again, what its refusals mean."""

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
_WAITS = (2.0, 8.0)
"""Seconds before what may succeed later is tried again, beside the client's own tries."""
_LONGEST_WAIT = 60.0
_LATER = (408, 429, 500, 502, 503, 504)
_MEANINGS = {
    403: f"the token may not write there (403); give it that right and type `{HF_LOGIN}`",
    404: "there is no such repository or branch, or it is hidden from this login (404)",
    409: "it is in the way of what is there already (409)",
    412: "someone else has changed it in between (412)",
    429: "the Hub has had too many requests (429)",
}


class _Named(TypedDict):
    name: str


class _Scope(TypedDict, total=False):
    entity: _Named
    permissions: list[str]


# A part of the Hub's answer is named with `global`, which no class of Python can have.
_Rights = TypedDict("_Rights", {"global": list[str], "scoped": list[_Scope]}, total=False)


class _Token(TypedDict, total=False):
    role: str
    displayName: str
    fineGrained: _Rights


class _Auth(TypedDict, total=False):
    accessToken: _Token


class _Account(_Named):
    """What of the Hub's `whoami` is read here."""

    orgs: NotRequired[list[_Named]]
    auth: NotRequired[_Auth]


def check(hub: HubConfig) -> str:
    """Asks whether the winner may be pushed, and what is there; one line.

    Raises InputError if not: the login, its right to write, the name, what is public.
    """
    repo = hub.repo
    assert repo is not None
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"hub.repo: {one_line(error)}") from None
    to_folder = dpo_tune("push", "RUN", "--repo", repo, "--to", "FOLDER")
    elsewhere = f"or write it to a folder: `{to_folder}`"
    if out_of_reach := look_again():
        raise Unreachable(f"hub.repo: no way to the Hub ({out_of_reach}); try later, {elsewhere}")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"hub.repo: HF_HUB_OFFLINE is set; unset it, {elsewhere}")
    if get_token() is None:
        raise InputError(f"hub.repo: not logged in; type `{HF_LOGIN}`, {elsewhere}")
    api = HfApi()
    try:
        who = cast(_Account, patiently(api.whoami))
        _refuse_other_owner(repo, who)
        if not patiently(lambda: api.repo_exists(repo)):
            return f"{repo}: {who['name']} may write, to be made {_visibility(hub.private)}"
        patiently(lambda: api.auth_check(repo, write=True))
        is_private = bool(patiently(lambda: api.model_info(repo)).private)
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds
        kind = Unreachable if _may_pass(error) else InputError
        raise kind(f"hub.repo: {explain(error)}") from None
    refuse_public(hub, is_private)
    return f"{repo}: {who['name']} may write, is {_visibility(is_private)}"


def _refuse_other_owner(repo: str, who: _Account) -> None:
    owner = repo.partition("/")[0]
    owners = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner not in owners:
        raise InputError(
            f"hub.repo: {who['name']} can't write to {owner!r}; yours: {', '.join(owners)}"
        )
    token = who.get("auth", {}).get("accessToken", {})
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
    if hub.private and not is_private:
        raise InputError(
            f"hub.private: {hub.repo} is public; type `--public`, or `hub: {{private: false}}`, or "
            "name another repository"
        )


def _visibility(private: bool) -> str:
    return "private" if private else "public"


def patiently(action: Callable[[], T]) -> T:
    """Tries again what may succeed later, in growing waits or as long as the Hub asks for."""
    for wait in _WAITS:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
            wait = min(_asked_for(error) or wait, _LONGEST_WAIT)
            print(f"{explain(error)}; trying again in {wait:g} s", flush=True)
            time.sleep(wait)
    return action()


def _may_pass(error: Exception) -> bool:
    status = hub_errors.status(error)
    return status in _LATER or (status is None and isinstance(error, HTTPError | ConnectionError))


def _asked_for(error: Exception) -> float:
    """Seconds that the Hub asks to wait; 0 if it does not say."""
    given = (
        error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    )
    return float(given) if given.isdigit() else 0.0


def explain(error: Exception) -> str:
    """Why the Hub did not do what was asked of it for a push, on one short line."""
    if hub_errors.status(error) is None:  # xet has errors of its own
        return hub_errors.unreachable(error)
    return hub_errors.explain(error, meanings=_MEANINGS)
