"""Explains an error of the Hub's client in one short line, with what to do about it.

The client's own texts have several lines, addresses and request ids, and call every unknown refusal
a broken connection. This module knows what status codes mean, but not what was requested.
"""

from __future__ import annotations

from collections.abc import Mapping

from dpo_train.command_line import script
from dpo_train.errors import one_line
from dpo_train.hub_offline import look_for_hub

HF_LOGIN = script("hf", "auth", "login")
LOGIN_REFUSED = f"the Hub does not accept the login (401); type `{HF_LOGIN}`"
_READING = {
    403: "this login may not read it (403)",
    404: "the Hub has nothing of this name, or this login may not see it",
    429: "the Hub has had too many requests (429)",
}


def explain(error: Exception, advice: str = "", meanings: Mapping[int, str] = _READING) -> str:
    """Return why the Hub refused a request, and then `advice`, unless only a login helps.

    `meanings` are the reasons by status code. Any other error keeps its own message.
    """
    from huggingface_hub import constants  # slow to import
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Refusals that only a login helps against.
    cause = _answer_behind(error)
    if isinstance(cause, GatedRepoError):
        kind = "datasets/" if cause.repo_type == "dataset" else ""
        page = f"{constants.ENDPOINT}/{kind}{cause.repo_id}"
        return f"it is gated; ask for access at {page} and type `{HF_LOGIN}`"
    if status(cause) == 401 and not isinstance(cause, RepositoryNotFoundError):
        return LOGIN_REFUSED
    # All other causes.
    if isinstance(cause, RevisionNotFoundError):
        reason = "the Hub has it, but not this revision (404)"
    elif isinstance(cause, RepositoryNotFoundError):  # it may be 401 if there is no login
        reason = meanings[404]
    elif isinstance(cause, HfHubHTTPError):
        code = cause.response.status_code
        reason = meanings.get(code, f"the Hub failed ({code})")
        reason += f": {one_line(cause.server_message)}" if cause.server_message else ""
    elif isinstance(cause, OfflineModeIsEnabled):
        out_of_reach = look_for_hub()
        why = (
            f"the Hub can't be reached ({out_of_reach})"
            if out_of_reach
            else "HF_HUB_OFFLINE is set"
        )
        reason = f"{why}, and the cache does not have it"
    elif isinstance(cause, HTTPError | ConnectionError):
        reason = unreachable(cause)
    else:
        reason = one_line(cause, 300)
    return f"{reason}; {advice}" if advice else reason


def _answer_behind(error: Exception) -> BaseException:
    """Return the error of the Hub's answer or of the connection that caused this error.

    Problem: the client and `datasets` hide most causes behind "check your connection". So we look
    at the errors from which this one was raised.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    link: BaseException | None = error
    while link is not None:
        is_answer = isinstance(link, HTTPError | OfflineModeIsEnabled)
        if is_answer and not isinstance(link, EntryNotFoundError):  # that is an optional file
            return link
        link = link.__cause__ or link.__context__
    return error


def unreachable(error: BaseException) -> str:
    """Return the message for a Hub that can't be reached."""
    cause = f"{type(error).__name__}: {one_line(error)}"
    return f"the Hub can't be reached, or the connection broke ({cause})"


def status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer, or None if there was no answer."""
    from huggingface_hub.errors import HfHubHTTPError  # slow to import

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None
