"""Without a connection to the Hub a message says so at once, and cached files are used."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from dpo_train import hub_offline
from dpo_train.hub_errors import explain
from dpo_train.hub_offline import look_again, look_for_hub
from tests.helpers.hub_server import HubServer


@pytest.fixture(autouse=True)
def _reset_hub_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset this process as if it had not looked for the Hub yet and were not set offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    look_for_hub.cache_clear()
    yield
    look_for_hub.cache_clear()


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer({}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        assert look_for_hub() == ""
    assert not constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_a_hub_out_of_reach_is_said_and_only_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer({}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    reason = look_for_hub()
    assert reason == "127.0.0.1: Connection refused"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(Exception, match="offline|cache") as caught:
        hf_hub_download("acme/tiny", "config.json", cache_dir=tmp_path)
    assert explain(caught.value, "do this") == (
        f"the Hub can't be reached ({reason}), and the cache does not have it; do this"
    )


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def silent(*_: object, **__: object) -> None:
        forever.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(hub_offline, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    assert look_for_hub() == "hub.example: no answer within 0.05 s"
    forever.set()


def test_an_address_that_never_answers_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may have two kinds of address, one of which leads nowhere."""
    forever = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        return [(None, None, None, "", (address, 1)) for address in ("::dead", "127.0.0.1")]

    def silent_at_first(address: tuple[str, int], _: float) -> socket.socket:
        if address[0] == "::dead":
            forever.wait()
        return socket.socket()

    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", silent_at_first)
    assert look_for_hub() == ""
    forever.set()


def test_a_hub_that_is_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of days may begin in the three seconds in which there is no network."""
    with HubServer({}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        assert look_for_hub()
        assert look_again()
        assert constants.HF_HUB_OFFLINE
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        assert look_again() == ""
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_behind_a_proxy_the_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    addresses: list[object] = []

    def refuse(address: object, _: float) -> None:
        addresses.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert look_for_hub() == "127.0.0.1: Connection refused"
    assert addresses == [("127.0.0.1", 3128)]


def test_nobody_is_warned_about_a_deliberate_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looked"))
    assert look_for_hub() == ""
    assert look_again() == ""
    assert constants.HF_HUB_OFFLINE
