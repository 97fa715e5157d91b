"""What the tests of the report share: a browser."""

from tests.helpers.browser import Open, browser, open_page

__all__ = ["Open", "browser", "open_page"]
