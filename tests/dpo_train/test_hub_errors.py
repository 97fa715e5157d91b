"""The messages for the Hub's refusals: errors of the real client against a server on loopback."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from dpo_train import sample
from dpo_train.hub_errors import HF_LOGIN, explain
from tests.helpers.hub_uploads import Fault, WritableHub

ADVICE = "do this"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folders = {"models/acme/tiny": sample.MODEL, "models/acme/gated": sample.MODEL}
    with WritableHub(folders) as hub:
        hub.repositories["models/acme/gated"].gated = True
        monkeypatch.setattr(time, "sleep", lambda _: None)  # skips the client's waits between tries
        yield hub


def explained(
    hub: WritableHub,
    folder: Path,
    repo: str = "acme/tiny",
    revision: str | None = None,
    token: str | bool = False,
) -> str:
    """Return the message for a file that can't be read."""
    try:
        hf_hub_download(
            repo, "config.json", revision=revision, token=token, endpoint=hub.url, cache_dir=folder
        )
    except Exception as error:
        return explain(error, ADVICE)
    raise AssertionError("it was read")


def test_a_refused_login_is_the_only_message(tmp_path: Path, hub: WritableHub) -> None:
    message = f"the Hub does not accept the login (401); type `{HF_LOGIN}`"
    assert explained(hub, tmp_path, token="hf_wrong") == message


def test_a_gated_model_is_said_with_its_page(tmp_path: Path, hub: WritableHub) -> None:
    page = f"{constants.ENDPOINT}/acme/gated"
    message = f"it is gated; ask for access at {page} and type `{HF_LOGIN}`"
    assert explained(hub, tmp_path, "acme/gated") == message


def test_what_is_missing_is_said_without_addresses(tmp_path: Path, hub: WritableHub) -> None:
    missing = f"the Hub has nothing of this name, or this login may not see it; {ADVICE}"
    for token in (False, str(hub.token)):  # without a login the Hub answers 401
        assert explained(hub, tmp_path, "acme/none", token=token) == missing
    revision = f"the Hub has it, but not this revision (404); {ADVICE}"
    assert explained(hub, tmp_path, revision="v9") == revision


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "this login may not read it (403)"),
        (429, "the Hub has had too many requests (429)"),
        (503, "the Hub failed (503)"),
    ],
)
def test_a_status_that_the_client_hides_is_said(
    tmp_path: Path, hub: WritableHub, status: int, reason: str
) -> None:
    hub.faults.append(Fault("HEAD", "config.json", status, {"X-Error-Message": "Not now"}, 9))
    assert explained(hub, tmp_path, token=str(hub.token)) == f"{reason}: Not now; {ADVICE}"


def test_an_unreachable_hub_is_distinguished_from_an_offline_setting(
    tmp_path: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.append(Fault("HEAD", "config.json", 0, times=9))
    assert explained(hub, tmp_path).startswith("the Hub can't be reached, or the connection")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = f"HF_HUB_OFFLINE is set, and the cache does not have it; {ADVICE}"
    assert explained(hub, tmp_path) == offline


def test_another_error_keeps_its_own_message(tmp_path: Path, hub: WritableHub) -> None:
    assert explain(ValueError("one\ntwo"), ADVICE) == f"one two; {ADVICE}"
    assert explained(hub, tmp_path, "a b").startswith("Repo id must use alphanumeric chars")
