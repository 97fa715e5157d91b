"""A browser for the tests of the report."""

from tests.helpers.browser import Open, browser, open_page

__all__ = ["Open", "browser", "open_page"]
