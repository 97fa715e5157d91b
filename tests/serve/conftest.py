"""Fixtures for the tests of the page: a browser, and the page over a double of its API."""

from collections.abc import Iterator

import pytest

from tests.helpers.app_server import Server
from tests.helpers.browser import Open, browser, open_page
from tests.helpers.scripted_api import Script, create_app

MODELS = ["winner", "base", "earlier  winner"]
__all__ = ["Open", "browser", "open_page"]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def scripted(script: Script) -> Iterator[Server]:
    """Serve the page over an API that answers as `script` says."""
    with Server(create_app(script, MODELS, examples=("Do bats see?",))) as server:
        yield server
        script.is_endless = False  # lets the server end: it waits for its streams
