"""What a user does on the page of the server, and where the answers are."""

from playwright.sync_api import Locator, Page, expect


def prompt_box(page: Page) -> Locator:
    """Return the box for the prompt."""
    return page.get_by_label("Prompt", exact=True)


def answers(page: Page) -> Locator:
    """Return the texts of all answers."""
    return page.locator(".answer .text")


def note(page: Page) -> Locator:
    """Return the text below the last answer: an error, or why the answer ended."""
    return page.locator(".note").last


def press(page: Page, name: str) -> None:
    """Press the last button of this name."""
    page.get_by_role("button", name=name, exact=True).last.click()


def ask(page: Page, text: str) -> None:
    """Send a prompt and wait until its answers have ended."""
    turns = page.locator(".turn").count()
    prompt_box(page).fill(text)
    press(page, "Generate")
    expect(page.locator(".turn")).to_have_count(turns + 1)
    expect(page.locator(".writing")).to_have_count(0, timeout=30_000)


def set_settings(page: Page, **values: object) -> None:
    """Fill fields of the settings."""
    press(page, "Settings")
    for name, value in values.items():
        page.locator(f"#settings [name={name}]").fill(str(value))
    press(page, "Close")
