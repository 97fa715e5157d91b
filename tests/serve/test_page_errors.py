"""The page explains what went wrong, and the conversation can go on."""

import pytest
from playwright.sync_api import expect

from tests.helpers.app_server import Server
from tests.helpers.chat_page import answers, ask, note, press
from tests.helpers.scripted_api import Script
from tests.serve.conftest import Open

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("status", "headers", "error", "shown"),
    [
        (400, {}, {"message": "top_k is not supported"}, "top_k is not supported. Change the"),
        (
            400, {}, {"message": "9 tokens", "code": "context_length_exceeded"},
            "too long for the model: 9 tokens. Start a new conversation",
        ),
        (401, {}, {"message": "the key"}, "Reload the page and enter the key as the password."),
        (404, {}, {"message": "no model 'x'"}, "no model 'x'. Reload the page to see"),
        (413, {}, {"message": "bytes"}, "too long to send. Start a new one."),
        (503, {"Retry-After": "3"}, {}, "The server is busy. Press Regenerate in 3 seconds."),
        (504, {}, {"message": "late"}, "The server had no time for this answer."),
        (500, {}, {"message": "it broke"}, "The server failed: it broke. Press Regenerate"),
    ],
)  # fmt: skip
def test_an_error_says_what_to_do_and_the_conversation_goes_on(
    open_page: Open, scripted: Server, script: Script, status: int,
    headers: dict[str, str], error: dict[str, str | None], shown: str,
) -> None:  # fmt: skip
    page = open_page(scripted.url)
    script.refusal = (status, headers, error)
    ask(page, "one")
    expect(note(page)).to_contain_text(shown)
    script.refusal = None
    press(page, "Regenerate")
    expect(answers(page)).to_have_text(["ONE (winner)"])
    expect(note(page)).to_be_hidden()


def test_text_that_was_written_stays_when_the_connection_is_lost(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    script.is_cut = True
    ask(page, "a rather long prompt")
    expect(answers(page)).to_have_text("A RATHER LONG")
    expect(note(page)).to_contain_text("The connection was lost. The text so far stays.")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    press(page, "Regenerate")
    expect(note(page)).to_contain_text("The server can't be reached.")
