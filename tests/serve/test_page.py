"""A person uses the page in a real Chromium, by mouse and by keyboard."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Error, expect

from dpo_train import sample
from serve import api, models, ui
from serve.models import ServedModel
from tests.helpers.app_server import Server
from tests.helpers.chat_page import answers, ask, note, press, prompt_box, set_settings
from tests.helpers.scripted_api import Script, create_app
from tests.serve.conftest import Open

KEY = "a key that is long enough"
QUESTION = "Is it true that goldfish forget everything in seconds?"
FAST = {"temperature": 0, "max_tokens": 30}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, ServedModel]]:
    sources = [f"winner={sample.MODEL}", f"other={sample.MODEL}"]
    loaded = models.load(sources, slots=3, context=256, max_waiting=4)
    yield loaded
    loaded["winner"].engine.close()


def app(loaded: dict[str, ServedModel], key: str | None = None) -> Any:
    made = api.create_app(loaded, key)
    ui.mount(made, list(loaded), "By Jo", ["Do bats see?"])
    return made


@pytest.fixture(scope="module")
def server(loaded: dict[str, ServedModel]) -> Iterator[Server]:
    with Server(app(loaded)) as server:
        yield server


def answered(server: Server, *prompts: str) -> list[str]:
    """Return the model's answer to each prompt of a conversation, as the API gives it."""
    messages: list[dict[str, str]] = []
    for prompt in prompts:
        messages.append({"role": "user", "content": prompt})
        body = {"messages": messages, **FAST}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        written = answer["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": written})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_a_prompt_a_button_and_the_answer_are_seen_at_first_sight(
    open_page: Open, server: Server
) -> None:
    page = open_page(server.url, 390)
    expect(page).to_have_title("winner · dpo-tune")
    expect(prompt_box(page)).to_be_focused()
    set_settings(page, **FAST)
    ask(page, QUESTION)
    expect(answers(page)).to_have_text(answered(server, QUESTION))
    for seen in (answers(page), prompt_box(page), page.locator("#generate")):
        expect(seen).to_be_in_viewport(ratio=1)
    expect(page.get_by_text("By Jo")).to_be_in_viewport()


def test_each_of_three_turns_knows_those_before_it(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    set_settings(page, **FAST)
    prompts = (QUESTION, "Do bats see?", "And moles?")
    for prompt in prompts:
        ask(page, prompt)
    expect(page.locator(".prompt")).to_have_text(list(prompts))
    expect(answers(page)).to_have_text(answered(server, *prompts))


def test_an_answer_is_shown_as_it_is_written_and_read_out_once(
    open_page: Open, scripted: Server, script: Script
) -> None:
    script.answers["Long?"] = "word " * 1000
    page = open_page(scripted.url)
    seen = page.evaluate_handle(
        """() => {
            const seen = {shown: new Set(), read: []};
            const observe = (id, note) => new MutationObserver(note).observe(
                document.getElementById(id), {childList: true, subtree: true, characterData: true});
            observe("turns", () => seen.shown.add(document.querySelector(".text").textContent));
            observe("status", () => seen.read.push(document.getElementById("status").textContent));
            return seen;
        }"""
    )
    ask(page, "Long?")
    assert seen.evaluate("seen => seen.shown.size") > 5
    read = seen.evaluate("seen => seen.read")
    assert read[0] == "The answer is being written."
    assert [text.strip() for text in read[1:]] == [f"winner: {('word ' * 1000).strip()}"]


def test_any_two_models_answer_side_by_side_each_with_its_own_conversation(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    page.get_by_label("Model", exact=True).select_option("earlier  winner")
    second = page.get_by_label("Compare with")
    assert second.locator("option").all_inner_texts() == ["no other model", "winner", "base"]
    second.select_option("winner")
    ask(page, "one")
    expect(answers(page)).to_have_text(["ONE (earlier  winner)", "ONE (winner)"])
    left, right = (box.bounding_box() for box in page.locator(".answer").all())
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    ask(page, "two")
    histories = {body["model"]: body["messages"][1]["content"] for body in script.bodies[2:]}
    assert histories == {"earlier  winner": "ONE (earlier  winner)", "winner": "ONE (winner)"}


def test_stop_keeps_what_was_written_and_the_server_notices(
    open_page: Open, scripted: Server, script: Script
) -> None:
    script.is_endless = True
    page = open_page(scripted.url)
    prompt_box(page).fill("Endless?")
    press(page, "Generate")
    expect(answers(page)).to_contain_text("on and on")
    press(page, "Stop")
    expect(note(page)).to_have_text("Stopped.")
    expect(answers(page)).to_contain_text("on and on")
    expect(prompt_box(page)).to_be_focused()
    deadline = time.monotonic() + 30
    while not script.gone and time.monotonic() < deadline:
        page.wait_for_timeout(10)
    assert script.gone == 1
    press(page, "Regenerate")
    expect(answers(page)).to_contain_text("on and on")
    expect(note(page)).to_be_hidden()  # the note belonged to the answer before
    press(page, "Stop")
    script.is_endless = False
    ask(page, "next")
    assert "on and on" in script.bodies[-1]["messages"][1]["content"]


def test_regenerate_asks_the_last_prompt_again(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    ask(page, "one")
    ask(page, "two")
    script.answers["two"] = "better"
    expect(page.get_by_role("button", name="Regenerate")).to_have_count(1)
    press(page, "Regenerate")
    expect(answers(page)).to_have_text(["ONE (winner)", "better"])
    assert script.bodies[-1] == script.bodies[-2]


def test_an_answer_is_copied_as_it_was_written(
    open_page: Open, scripted: Server, script: Script
) -> None:
    text = "# Title\n\n```\n\tcode  line\n```"
    script.answers["Code?"] = text
    page = open_page(scripted.url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Code?")
    copied = "navigator.clipboard.readText()"
    press(page, "Copy")
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate(copied) == text
    press(page, "Copy code")
    expect(page.get_by_role("button", name="Copied")).to_have_count(2)
    assert page.evaluate(copied) == "\tcode  line"


def test_only_settings_that_have_a_value_are_sent(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    ask(page, "one")
    plain = {"model": "winner", "messages": [{"role": "user", "content": "one"}], "stream": True}
    assert script.bodies == [plain]
    given = {"temperature": 0.25, "top_p": 0.5, "top_k": 40, "max_tokens": 9, "seed": 0}
    set_settings(page, **given, system="Be short.")
    press(page, "New conversation")
    ask(page, "one")
    system = {"role": "system", "content": "Be short."}
    assert script.bodies[1] == {**plain, **given, "messages": [system, *plain["messages"]]}
    set_settings(page, top_p=2)
    prompt_box(page).fill("two")
    press(page, "Generate")
    expect(page.locator("#settings [name=top_p]")).to_be_focused()
    assert len(script.bodies) == 2


def test_an_empty_prompt_is_not_sent(open_page: Open, scripted: Server, script: Script) -> None:
    page = open_page(scripted.url)
    for text in ("", " \n "):
        prompt_box(page).fill(text)
        press(page, "Generate")
    expect(page.locator(".turn")).to_have_count(0)
    assert script.bodies == []


def test_a_context_that_is_too_short_is_said_by_the_server_itself(
    open_page: Open, server: Server
) -> None:
    page = open_page(server.url)
    set_settings(page, max_tokens=250)
    ask(page, QUESTION)
    expect(note(page)).to_contain_text("are more than the context of 256. Lower Max tokens")


def test_the_keyboard_is_enough(open_page: Open, scripted: Server, script: Script) -> None:
    page = open_page(scripted.url)
    expect(prompt_box(page)).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("ONE LINE (winner)")
    assert script.bodies[0]["messages"][-1]["content"] == "one\nline"
    expect(prompt_box(page)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Regenerate")).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    script.is_endless = True
    page.keyboard.press("Enter")
    expect(answers(page)).to_contain_text("on and on")
    page.keyboard.press("Escape")
    expect(note(page)).to_have_text("Stopped.")
    page.keyboard.press("Tab")
    expect(page.locator("#generate")).to_be_focused()


def test_a_conversation_stays_in_its_tab_when_the_page_is_reloaded(
    open_page: Open, scripted: Server, script: Script
) -> None:
    page = open_page(scripted.url)
    page.get_by_label("Compare with").select_option("base")
    set_settings(page, temperature=0.5)
    ask(page, "one")
    script.is_endless = True
    prompt_box(page).fill("two")
    press(page, "Generate")
    expect(answers(page).last).to_contain_text("on and on")
    page.reload()
    expect(answers(page).first).to_have_text("ONE (winner)")
    expect(answers(page).last).to_contain_text("on and on")
    expect(note(page)).to_contain_text("Press Regenerate to try again.")
    script.is_endless = False
    ask(page, "three")
    assert script.bodies[-1]["temperature"] == 0.5
    assert sorted(str(body["model"]) for body in script.bodies[-2:]) == ["base", "winner"]
    another = page.context.new_page()
    another.goto(scripted.url)
    expect(another.locator(".turn")).to_have_count(0)


def test_an_example_fills_the_prompt(open_page: Open, scripted: Server) -> None:
    page = open_page(scripted.url)
    press(page, "Do bats see?")
    expect(prompt_box(page)).to_have_value("Do bats see?")
    expect(prompt_box(page)).to_be_focused()


def test_one_model_has_nothing_to_be_compared_with(open_page: Open, script: Script) -> None:
    with Server(create_app(script, ["alone"])) as server:
        page = open_page(server.url)
        expect(page.get_by_label("Compare with")).to_be_hidden()
        expect(page.get_by_role("heading", name="Examples")).to_be_hidden()
        ask(page, "one")
        expect(answers(page)).to_have_text("ONE (alone)")


def test_the_browser_asks_for_the_key(open_page: Open, loaded: dict[str, ServedModel]) -> None:
    with Server(app(loaded, KEY)) as server:
        credentials = {"username": "any", "password": KEY}
        page = open_page(server.url, http_credentials=credentials)
        set_settings(page, **FAST)
        ask(page, QUESTION)
        expect(answers(page)).not_to_be_empty()
        expect(note(page)).not_to_contain_text("key")
        with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):
            open_page(server.url)
